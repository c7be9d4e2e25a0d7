"""One exchange, asked for windows of candles through genuine ccxt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.answers import CCXT_LAYOUT, Answer, Layout
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import timeframe_ms, utc
from crypto_pipeline.errors import (
    BadAnswer,
    ConfigError,
    CryptoPipelineError,
    ExchangeError,
    RequestRefused,
)
from crypto_pipeline.exchanges.clock import ExchangeClock
from crypto_pipeline.exchanges.failures import told
from crypto_pipeline.exchanges.strict import CURRENT, Exchanged, strict_exchange
from crypto_pipeline.exchanges.trades import TradesCursor, TradesPage, TradesRequest
from crypto_pipeline.redaction import redacted

Clock = Callable[[], int]

#: Longest pause an exchange may impose on one request; what it asks beyond that ends the request.
LONGEST_RETRY_AFTER: Final = 60.0


def system_clock() -> int:
    """Our clock in ms."""
    return time.time_ns() // 1_000_000


@dataclass
class RequestCounts:
    """What a run asked of one exchange."""

    requests: int = 0
    retried: int = 0


class ExchangeWrapper:
    """Candles of one exchange, one window a request, retried where that can help.

    Rate limit on and spot markets unless ``pipeline.yaml`` says otherwise. Use as an async context
    manager; it owns a connection pool.

    Args:
        key: the exchange's key in ``pipeline.yaml``, which messages name.
        config: its section there.
        secrets: values that must not appear in any message.
        clock: our clock in ms.
    """

    def __init__(
        self,
        *,
        key: str,
        config: ExchangeConfig,
        secrets: tuple[str, ...] = (),
        clock: Clock = system_clock,
    ) -> None:
        self.key = key
        self.config = config
        self.habits = config.exchange_habits
        self.counts = RequestCounts()
        self.exchange_clock = ExchangeClock()
        self._secrets = secrets
        self._clock = clock
        self._layouts: dict[str, Layout | None] = {}
        self._ccxt = self._made()
        self._ccxt.clock = clock
        self._ccxt.secrets = secrets
        self._ccxt.on_request = self._count

    def _made(self) -> Any:
        try:
            return strict_exchange(self.config.ccxt_id, self._ccxt_options())
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - ccxt's constructor checks nothing it is given
            reason = redacted(f"{type(error).__name__}: {error}", self._secrets)
        raise ConfigError(
            f"exchanges.{self.key}.ccxt: ccxt's {self.config.ccxt_id} cannot be made from it:"
            f" {reason}.",
            hint="these keys go to ccxt's constructor; see its manual for their types.",
        )

    def _ccxt_options(self) -> dict[str, Any]:
        ours: dict[str, Any] = {
            "enableRateLimit": True,
            "timeout": int(self.config.timeout_seconds * 1_000),
            "options": {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}},
            "has": {"fetchCurrencies": False},  # candles need none; one to three requests fewer
        }
        theirs = self.config.ccxt
        for name in ("options", "has"):
            ours[name] = {**ours[name], **theirs.get(name, {})}
        return {**ours, **{k: v for k, v in theirs.items() if k not in ("options", "has")}}

    def _count(self) -> None:
        self.counts.requests += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._ccxt.close()

    @property
    def our_now(self) -> int:
        """Our clock, ms."""
        return self._clock()

    @property
    def now(self) -> int:
        """The exchange's clock, ms."""
        return self._clock() + self.exchange_clock.offset_ms

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbols the exchange lists; empty before :meth:`load_markets`."""
        return tuple(self._ccxt.markets or ())

    def serves(self, timeframe: str) -> bool:
        """Whether the exchange has candles of this timeframe."""
        return timeframe in (self._ccxt.timeframes or {})

    def trades_now(self, symbol: str) -> bool | None:
        """Whether the exchange lists the symbol as trading; None where it does not say."""
        active = (self._ccxt.markets or {}).get(symbol, {}).get("active")
        return active if isinstance(active, bool) else None

    async def load_markets(self) -> None:
        """Load the exchange's markets; they stay loaded.

        Raises:
            ExchangeError: typed by whether a rerun helps.
        """
        if self._ccxt.markets:
            return
        tried = f"{self.key}: loading its markets"
        await self._asked(self._ccxt.load_markets, tried)
        if not self._ccxt.markets:
            raise BadAnswer(
                f"{tried}: the exchange lists none at all.",
                hint="nothing, if it passes: the next tick asks again.",
            )

    async def fetch(self, series: Series, window: Interval) -> Answer:
        """Ask for one window, which fits a page, of one series.

        Raises:
            RequestRefused: the exchange does not list the symbol or serve the timeframe.
            ExchangeError: any other failure, after the configured attempts.
        """
        tried = (
            f"{self.key} {series.symbol} {series.timeframe} from {utc(window.start).isoformat()}"
        )
        self._check(series, tried)
        length = timeframe_ms(series.timeframe)
        params = {}
        if self.habits.until is not None:
            inclusive = self.habits.until == "inclusive"
            params["until"] = window.end - length if inclusive else window.end
        seen = await self._asked(
            self._ccxt.fetch_ohlcv,
            f"{tried} to {utc(window.end).isoformat()}",
            series.symbol,
            timeframe=series.timeframe,
            since=window.start,
            limit=(window.end - window.start) // length,
            params=params,
        )
        if seen.rows is None:
            raise BadAnswer(
                f"{tried}: ccxt's {self.config.ccxt_id} returned without reading any candles.",
                hint="ccxt has changed, or this exchange cannot be collected with it.",
                http_status=seen.status,
            )
        rows, layout = self._rows(seen.rows, series.symbol)
        return Answer(
            symbol=series.symbol,
            timeframe=series.timeframe,
            window=window,
            rows=rows,
            layout=layout,
            fetched_at=seen.received_at,
            clock_offset_ms=self.exchange_clock.offset_ms,
        )

    async def fetch_trades(self, symbol: str, cursor: TradesCursor | None = None) -> TradesPage:
        """Ask for one page of a symbol's trades: those after the cursor, or the newest there are.

        Raises:
            RequestRefused: the exchange does not list the symbol.
            ExchangeError: any other failure, after the configured attempts.
        """
        tried = f"{self.key} {symbol} trades {cursor or 'that are the newest'}"
        self._check_symbol(symbol, tried)
        request = TradesRequest(self._ccxt, symbol, cursor)
        seen = await self._asked(request, tried)
        return request.page(
            fetched_at=seen.received_at, clock_offset_ms=self.exchange_clock.offset_ms
        )

    def _check(self, series: Series, tried: str) -> None:
        if series.timeframe not in (self._ccxt.timeframes or {}):
            raise RequestRefused(
                f"{tried}: {self.config.ccxt_id} has no timeframe {series.timeframe}.",
                hint=f"choose from {', '.join(self._ccxt.timeframes or {})}.",
            )
        self._check_symbol(series.symbol, tried)

    def _check_symbol(self, symbol: str, tried: str) -> None:
        if self._ccxt.markets and symbol not in self._ccxt.markets:
            raise RequestRefused(
                f"{tried}: {self.config.ccxt_id} lists no market {symbol}.",
                hint=f"correct exchanges.{self.key}.symbols in pipeline.yaml.",
            )

    async def _asked(
        self, call: Callable[..., Any], tried: str, *args: Any, **named: Any
    ) -> Exchanged:
        """Call ccxt, again where that can help; what was seen on the wire, or a typed error."""
        retry = self.config.retry
        backoff = wait_exponential(
            multiplier=retry.first_wait_seconds,
            min=retry.first_wait_seconds,
            max=retry.longest_wait_seconds,
        )
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(retry.attempts),
            wait=lambda state: max(backoff(state), _asked_to_wait(state)),
            retry=retry_if_exception(_worth_another_try),
            reraise=True,
        ):
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    self.counts.retried += 1
                return await self._once(call, tried, *args, **named)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _once(
        self, call: Callable[..., Any], tried: str, *args: Any, **named: Any
    ) -> Exchanged:
        seen = Exchanged()
        failure: ExchangeError | None = None
        token = CURRENT.set(seen)
        try:
            await call(*args, **named)
        except Exception as error:  # noqa: BLE001 - ccxt raises anything
            failure = told(error, tried=tried, seen=seen, redact=self._secrets)
        finally:
            CURRENT.reset(token)
            self.exchange_clock.observe(seen)
        if failure is not None:
            raise failure  # here, without ccxt's error in its chain: that may hold credentials
        return seen

    def _rows(self, rows: list[Any], symbol: str) -> tuple[list[Any], Layout]:
        """The rows and where their numbers stand; converted by ccxt where no layout describes it."""
        if symbol not in self._layouts:
            self._layouts[symbol] = self._probe_layout(symbol)
        layout = self._layouts[symbol]
        if layout is not None and not any(isinstance(row, dict) for row in rows):
            return rows, layout
        return [self._converted(row, symbol) for row in rows], CCXT_LAYOUT

    def _converted(self, row: Any, symbol: str) -> Any:
        try:
            return self._ccxt.parse_ohlcv(row, self._ccxt.market(symbol))
        except Exception:  # noqa: BLE001 - a row ccxt chokes on is kept as it came, and refused by rule
            return row

    def _probe_layout(self, symbol: str) -> Layout | None:
        """Learn from ccxt's own ``parse_ohlcv`` where an exchange puts the six numbers of a row."""
        probe = [str(101 + index) for index in range(16)]
        parsed = self._converted(probe, symbol)
        try:
            unit = next(
                unit for unit in (1, 1_000) if parsed[0] and str(parsed[0] // unit) in probe
            )
            time_position = probe.index(str(parsed[0] // unit))
            values = [probe.index(str(int(value))) for value in parsed[1:6]]
        except (StopIteration, TypeError, ValueError, IndexError):
            return None
        return Layout((time_position, *values), unit) if len(values) == 5 else None  # type: ignore[arg-type]


def _worth_another_try(error: BaseException) -> bool:
    if not isinstance(error, CryptoPipelineError) or not error.rerun_helps:
        return False
    return (getattr(error, "retry_after", None) or 0.0) <= LONGEST_RETRY_AFTER


def _asked_to_wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return float(getattr(error, "retry_after", None) or 0.0)
