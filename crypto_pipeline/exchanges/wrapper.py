"""One exchange, asked for windows of candles through genuine ccxt."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.pacing import Pacer
from crypto_pipeline.core.timeframes import timeframe_ms, utc
from crypto_pipeline.errors import BadAnswer, ConfigError, RequestRefused
from crypto_pipeline.exchanges.asking import Asker, Clock, RequestCounts, system_clock
from crypto_pipeline.exchanges.clock import ExchangeClock
from crypto_pipeline.exchanges.layouts import Layouts
from crypto_pipeline.exchanges.markets import MarketCache, cached_markets, keep_markets
from crypto_pipeline.exchanges.strict import strict_exchange
from crypto_pipeline.exchanges.trades import TradesCursor, TradesPage, TradesRequest
from crypto_pipeline.redaction import redacted


class ExchangeWrapper:
    """Candles of one exchange, one window a request, retried where that can help.

    Rate limit on and spot markets unless ``pipeline.yaml`` says otherwise. Use as an async context
    manager; it owns a connection pool.

    Args:
        key: the exchange's key in ``pipeline.yaml``, which messages name.
        config: its section there.
        secrets: values that must not appear in any message.
        clock: our clock in ms.
        pacer: the request budget of all processes; without one ccxt's own limiter counts.
        markets: where the exchange's markets are kept between runs.
    """

    def __init__(
        self,
        *,
        key: str,
        config: ExchangeConfig,
        secrets: tuple[str, ...] = (),
        clock: Clock = system_clock,
        pacer: Pacer | None = None,
        markets: MarketCache | None = None,
    ) -> None:
        self.key = key
        self.config = config
        self.habits = config.exchange_habits
        self.pacer = pacer
        self._secrets = secrets
        self._clock = clock
        self._markets = markets
        self._asker = Asker(retry=config.retry, secrets=secrets, pacer=pacer)
        self._ccxt = self._made()
        self._layouts = Layouts(self._ccxt)
        self._ccxt.clock = clock
        self._ccxt.secrets = secrets
        self._ccxt.pacer = pacer
        if config.answer_megabytes is not None:
            self._ccxt.answer_bytes = int(config.answer_megabytes * 1_000_000)
        self._ccxt.page = self.habits.page
        self._ccxt.on_request = self._asker.count

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

    async def __aenter__(self) -> Self:
        if self.pacer is not None:
            await self.pacer.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._ccxt.close()
        finally:
            if self.pacer is not None:
                await self.pacer.__aexit__(kind, error, trace)

    @property
    def counts(self) -> RequestCounts:
        """What was asked so far."""
        return self._asker.counts

    @property
    def exchange_clock(self) -> ExchangeClock:
        """The exchange's clock, as far as its answers tell it."""
        return self._asker.clock

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
        """Load the exchange's markets, from what other runs kept of them if that is enough.

        Raises:
            ExchangeError: typed by whether a rerun helps.
            DatabaseError: what is kept cannot be read.
        """
        if self._ccxt.markets:
            return
        cache, now = self._markets, self._clock()
        if cache is not None:
            kept = await asyncio.to_thread(cached_markets, cache, self.config, now=now)
            if kept is not None:
                self._ccxt.set_markets(kept)
                return
        tried = f"{self.key}: loading its markets"
        await self._asker.ask(self._ccxt.load_markets, tried)
        if not self._ccxt.markets:
            raise BadAnswer(
                f"{tried}: the exchange lists none at all.",
                hint="nothing, if it passes: the next tick asks again.",
            )
        if cache is not None:
            market, listed = self._ccxt.market, self.symbols
            await asyncio.to_thread(
                keep_markets, cache, self.config, now=now, market=market, listed=listed
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
        seen = await self._asker.ask(
            self._ccxt.fetch_ohlcv,
            f"{tried} to {utc(window.end).isoformat()}",
            series.symbol,
            cost_ms=self.habits.cost_ms,
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
        rows, layout = self._layouts.rows(seen.rows, series.symbol)
        return Answer(
            symbol=series.symbol,
            timeframe=series.timeframe,
            window=window,
            rows=rows,
            layout=layout,
            fetched_at=seen.sent_at,
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
        seen = await self._asker.ask(request, tried)
        return request.page(fetched_at=seen.sent_at, clock_offset_ms=self.exchange_clock.offset_ms)

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
