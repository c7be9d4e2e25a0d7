"""Generated candles: any minute since 2015 of any symbol, a function of the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator.config import ExchangeConfig, SymbolConfig
from crypto_pipeline.simulator.truth.candles import Candles, Floats, Ints
from crypto_pipeline.simulator.truth.noise import bell, hashes, key_of, uniform, wander

_OPEN_ENDED = np.iinfo(np.int64).max // 2
_MINUTE_SIGMA = 0.0005
_STABLE = {"USD", "USDT", "USDC", "DAI", "FDUSD", "TUSD", "PYUSD", "EUR", "GBP"}
_PRICES = {
    "BTC": 30_000.0, "ETH": 2_000.0, "BNB": 300.0, "SOL": 100.0, "XRP": 0.6, "ADA": 0.4,
    "DOGE": 0.1, "LTC": 90.0, "DOT": 6.0, "LINK": 15.0, "AVAX": 30.0, "XMR": 150.0,
    "EUR": 1.08, "GBP": 1.25,
}  # fmt: skip
_QUOTE_PER_MINUTE = 50_000.0  # typical turnover, in US dollars
_LEAST_UNITS = 16


@dataclass(slots=True)
class GeneratedSource:
    """Minutes of one symbol on one exchange.

    Attributes:
        fills_quiet: quiet minutes are flat candles of no volume, as the exchange serves them.
    """

    exchange: str
    symbol: str
    seed: int
    exchange_config: ExchangeConfig
    symbol_config: SymbolConfig
    fills_quiet: bool
    price_decimals: int = field(init=False)
    volume_decimals: int = field(init=False)
    key: int = field(init=False)
    _typical: float = field(init=False)

    def __post_init__(self) -> None:
        base, quote = self.symbol.split("/")
        self.key = key_of(self.seed, self.exchange, self.symbol)
        self._typical = self._typical_price(base) / self._typical_price(quote)
        magnitude = math.floor(math.log10(self._typical))
        decimals = self.symbol_config.price_decimals
        self.price_decimals = min(8, max(2, 5 - magnitude)) if decimals is None else decimals
        self.volume_decimals = min(8, max(0, 1 + math.floor(math.log10(self._typical_price(base)))))

    @property
    def span(self) -> tuple[int, int]:
        """``[start, end)`` of the open times that exist, milliseconds."""
        end = self.symbol_config.delisted
        return self.symbol_config.listed, _OPEN_ENDED if end is None else end

    def minutes(self, start_ms: int, end_ms: int) -> Candles:
        """Final candles of the minutes that open in ``[start_ms, end_ms)``, without trade sums."""
        span = self.span
        first = max(-(-start_ms // MINUTE_MS), span[0] // MINUTE_MS)
        end = min(-(-end_ms // MINUTE_MS), span[1] // MINUTE_MS)
        if first >= end:
            return Candles.empty()
        lead = self._last_traded_before(first)
        index = np.arange(lead, end, dtype=np.int64)
        traded = self._traded(index)
        candles = self._all_traded(index)
        if not traded.all():
            candles = self._flatten_quiet(candles, traded)
        kept = self._exists(index) & (index >= first)
        return candles.take(kept if self.fills_quiet else kept & traded)

    def _typical_price(self, currency: str) -> float:
        if currency in _PRICES:
            return _PRICES[currency]
        if currency in _STABLE:
            return 1.0
        spread = uniform(key_of(self.seed, "price", currency), np.zeros(1, dtype=np.int64))[0]
        return float(10.0 ** (-1 + 3 * spread))

    def _traded(self, index: Ints) -> NDArray[np.bool_]:
        """The first minute of a listing and the first after an outage always trade."""
        rate = self.symbol_config.quiet_rate
        rate = self.exchange_config.quiet_rate if rate is None else rate
        traded = uniform(self.key ^ 1, index) >= rate
        forced = [self.span[0], *(end for _, end in self.exchange_config.outages)]
        return traded | np.isin(index * MINUTE_MS, forced)

    def _exists(self, index: Ints) -> NDArray[np.bool_]:
        time = index * MINUTE_MS
        exists = np.ones(len(index), dtype=bool)
        for start, end in self.exchange_config.outages:
            exists &= (time < start) | (time >= end)
        return exists

    def _last_traded_before(self, first: int) -> int:
        """The newest minute at or before ``first`` with a trade: flat candles carry its close."""
        listed = self.span[0] // MINUTE_MS
        reach = 1
        while True:
            start = max(listed, first - reach)
            traded = np.flatnonzero(self._traded(np.arange(start, first + 1, dtype=np.int64)))
            if len(traded):
                return start + int(traded[-1])
            reach *= 16

    def _path(self, first: int, last: int) -> Floats:
        """Price at the start of each minute, rounded to nothing yet."""
        logarithm = np.zeros(last - first + 1)
        for currency, sign in zip(self.symbol.split("/"), (1, -1), strict=True):
            sigma = _MINUTE_SIGMA * (0.04 if currency in _STABLE else 1.0)
            shared = key_of(self.seed, "market", currency)
            local = key_of(self.seed, self.exchange, self.symbol, currency)
            logarithm += sign * wander(shared, local, first, last, sigma=sigma)
        return self._typical * np.exp(logarithm)

    def _all_traded(self, index: Ints) -> Candles:
        """Candles as if every minute had trades; each closes where the next one starts."""
        path = self._path(int(index[0]), int(index[-1]) + 1)
        scale = 10.0**self.price_decimals
        ticks = np.maximum(np.rint(path * scale), 1.0)
        jitter = (hashes(self.key ^ 2, index) % np.uint64(5)).astype(np.int64)
        opened = np.maximum(ticks[:-1] + np.where(jitter == 0, -1, np.where(jitter == 1, 1, 0)), 1)
        closed = ticks[1:]
        reach = 0.4 * _MINUTE_SIGMA * path[:-1] * scale
        high = np.maximum(opened, closed) + np.rint(np.abs(bell(self.key ^ 3, index)) * reach)
        low = np.minimum(opened, closed) - np.rint(np.abs(bell(self.key ^ 4, index)) * reach)
        usd = path[:-1] * self._typical_price(self.symbol.split("/")[1])
        units = _QUOTE_PER_MINUTE / usd * np.exp(1.2 * bell(self.key ^ 5, index))
        unit_scale = 10.0**self.volume_decimals
        volume = (np.floor(units * unit_scale) + _LEAST_UNITS) / unit_scale
        none = np.zeros(len(index))
        return Candles(
            index * MINUTE_MS,
            opened / scale,
            high / scale,
            np.maximum(low, 1) / scale,
            closed / scale,
            volume,
            np.zeros(len(index), dtype=np.int64),
            none,
            none,
            none,
        )

    def _flatten_quiet(self, candles: Candles, traded: NDArray[np.bool_]) -> Candles:
        position = np.arange(len(traded))
        close = candles.close[np.maximum.accumulate(np.where(traded, position, 0))]
        return Candles(
            candles.time,
            np.where(traded, candles.open, close),
            np.where(traded, candles.high, close),
            np.where(traded, candles.low, close),
            close,
            candles.volume * traded,
            candles.count,
            candles.quote,
            candles.taker_base,
            candles.taker_quote,
        )
