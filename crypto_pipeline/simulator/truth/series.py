"""One series' truth, and all of them by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator.config import SimulatorConfig
from crypto_pipeline.simulator.truth.candles import Candles, aggregate
from crypto_pipeline.simulator.truth.generated import GeneratedSource
from crypto_pipeline.simulator.truth.replay import load_replay
from crypto_pipeline.simulator.truth.trades import (
    MinuteTrades,
    TradeColumns,
    candle_so_far,
    trades_of,
    with_sums,
)

if TYPE_CHECKING:
    import pandas as pd

# Dialects whose exchanges leave quiet minutes out instead of serving flat candles.
OMITS_QUIET = frozenset({"coinbaseexchange"})


class Source(Protocol):
    """Where the minutes of a series come from."""

    @property
    def key(self) -> int:
        """Seed of everything random about the series."""

    @property
    def price_decimals(self) -> int:
        """Decimals that write every price exactly."""

    @property
    def volume_decimals(self) -> int:
        """Decimals that write every volume exactly."""

    @property
    def span(self) -> tuple[int, int]:
        """``[start, end)`` of the open times that exist, milliseconds."""

    def minutes(self, start_ms: int, end_ms: int) -> Candles:
        """Final candles that open in ``[start_ms, end_ms)``, without trade sums."""


@dataclass(frozen=True, slots=True)
class Series:
    """One symbol on one exchange."""

    exchange: str
    symbol: str
    source: Source
    fills_quiet: bool
    _present: dict[int, tuple[Candles, MinuteTrades]] = field(default_factory=dict)
    _overs: dict[int, tuple[int, Candles]] = field(default_factory=dict)

    def candles(self, timeframe_ms: int, start_ms: int, end_ms: int) -> Candles:
        """Final candles that open in ``[start_ms, end_ms)``."""
        start_ms = -(-start_ms // timeframe_ms) * timeframe_ms
        end_ms = -(-end_ms // timeframe_ms) * timeframe_ms
        minutes = self.source.minutes(start_ms, end_ms)
        minutes = self._with_sums(minutes)
        if timeframe_ms == MINUTE_MS:
            return minutes
        return aggregate(minutes, timeframe_ms, volume_decimals=self.source.volume_decimals)

    def trades(self, start_ms: int, end_ms: int) -> TradeColumns:
        """Trades of the minutes that open in ``[start_ms, end_ms)``."""
        return self._trades(self.source.minutes(start_ms, end_ms)).columns(
            price_decimals=self.source.price_decimals,
            amount_decimals=self.source.volume_decimals,
        )

    def forming(self, timeframe_ms: int, now_ms: float) -> Candles:
        """The candle that is open at an instant, as it looks then: one row or none."""
        minute = int(now_ms) // MINUTE_MS * MINUTE_MS
        so_far = self._so_far(minute, now_ms)
        if timeframe_ms == MINUTE_MS:
            return so_far
        whole = Candles.joined([self._over(timeframe_ms, minute), so_far])
        return aggregate(whole, timeframe_ms, volume_decimals=self.source.volume_decimals)

    def _over(self, timeframe_ms: int, minute: int) -> Candles:
        """The minutes of the open bucket that are over, remembered for as long as it is so."""
        known_minute, known = self._overs.get(timeframe_ms, (None, None))
        if known is None or known_minute != minute:
            bucket = minute // timeframe_ms * timeframe_ms
            known = self._with_sums(self.source.minutes(bucket, minute))
            self._overs[timeframe_ms] = minute, known
        return known

    def _so_far(self, minute: int, now_ms: float) -> Candles:
        """The minute that is open, from the trades that have happened."""
        source = self.source
        known = self._present.get(minute)
        if known is None:
            known = self._current(minute)
            self._present.clear()
            self._present[minute] = known
        untraded, trades = known
        so_far = None
        if len(trades.minute):
            so_far = candle_so_far(
                trades.until(now_ms * 1_000),
                price_decimals=source.price_decimals,
                amount_decimals=source.volume_decimals,
            )
        return untraded if so_far is None else so_far

    def _current(self, minute: int) -> tuple[Candles, MinuteTrades]:
        """How an open minute looks before its first trade (flat or absent), and its trades."""
        current = self.source.minutes(minute, minute + MINUTE_MS)
        trades = self._trades(current)
        if not len(current) or not self.fills_quiet:
            return Candles.empty(), trades
        before = self.source.minutes(minute - MINUTE_MS, minute)
        price = before.close if len(before) else current.open
        none = current.volume * 0
        flat = Candles(
            current.time, price, price, price, price, none, current.count * 0, none, none, none
        )
        return flat, trades

    def _trades(self, minutes: Candles) -> MinuteTrades:
        source = self.source
        return trades_of(
            minutes,
            key=source.key,
            price_decimals=source.price_decimals,
            amount_decimals=source.volume_decimals,
        )

    def _with_sums(self, minutes: Candles) -> Candles:
        return with_sums(
            minutes,
            self._trades(minutes),
            price_decimals=self.source.price_decimals,
            amount_decimals=self.source.volume_decimals,
        )


class Truth:
    """Every series of a configuration.

    Raises:
        ConfigError: a file to replay is missing or wrong.
    """

    def __init__(self, config: SimulatorConfig) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        for key, exchange in config.exchanges.items():
            fills = config.dialect_of(key) not in OMITS_QUIET
            for symbol, symbol_config in exchange.symbols.items():
                source: Source
                if exchange.replay is None:
                    source = GeneratedSource(
                        key, symbol, config.seed, exchange, symbol_config, fills_quiet=fills
                    )
                else:
                    source = load_replay(
                        exchange.replay, exchange=key, symbol=symbol, seed=config.seed
                    )
                self._series[key, symbol] = Series(key, symbol, source, fills)

    def series(self, exchange: str, symbol: str) -> Series:
        """One series.

        Raises:
            ConfigError: it is not simulated.
        """
        try:
            return self._series[exchange, symbol]
        except KeyError:
            known = ", ".join(f"{key} {name}" for key, name in self._series)
            raise ConfigError(f"{exchange} {symbol} is not simulated (only {known}).") from None

    def candles(
        self, exchange: str, symbol: str, timeframe: str, start_ms: int, end_ms: int
    ) -> pd.DataFrame:
        """Final candles that open in ``[start_ms, end_ms)``, whether or not they are over yet.

        Returns:
            ``open_time`` (int64, milliseconds UTC), ``open, high, low, close, volume`` (float64).
            A minute without trades is a flat row of volume 0 where the exchange fills such
            minutes, and no row where it leaves them out; there is no row in an outage.
        """
        candles = self.series(exchange, symbol).candles(timeframe_ms(timeframe), start_ms, end_ms)
        return _frame(
            {
                "open_time": candles.time,
                "open": candles.open,
                "high": candles.high,
                "low": candles.low,
                "close": candles.close,
                "volume": candles.volume,
            }
        )

    def trades(self, exchange: str, symbol: str, start_ms: int, end_ms: int) -> pd.DataFrame:
        """Trades of the minutes that open in ``[start_ms, end_ms)``.

        Returns:
            ``time_us`` (int64, microseconds UTC), ``price``, ``amount``, ``buy`` (the taker
            bought), ``id`` (ascending).
        """
        return _frame(self.series(exchange, symbol).trades(start_ms, end_ms)._asdict())


def _frame(columns: dict[str, NDArray[Any]]) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415 (takes most of a second, which the server does without)

    return pd.DataFrame(columns)
