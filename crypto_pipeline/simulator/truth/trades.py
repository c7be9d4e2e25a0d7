"""The trades inside minutes: they aggregate to exactly the minute's candle.

The first trade is the open, the last the close, the high and the low are among them, and the
amounts add up to the volume to the last decimal. Times, sides and sizes come from the series' key,
so that a candle that still forms grows trade by trade into the final one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator.truth.candles import Candles, Floats, Ints, with_trade_sums
from crypto_pipeline.simulator.truth.noise import hashes

MOST_TRADES = 8  # in one minute
_MINUTE_US = MINUTE_MS * 1_000
_NEVER = np.iinfo(np.int64).max


class TradeColumns(NamedTuple):
    """Trades, one array a column; ids ascend, with gaps."""

    time_us: Ints
    price: Floats
    amount: Floats
    buy: NDArray[np.bool_]
    id: Ints

    def take(self, where: slice | NDArray[np.bool_]) -> TradeColumns:
        """The trades at some positions."""
        return TradeColumns(
            self.time_us[where],
            self.price[where],
            self.amount[where],
            self.buy[where],
            self.id[where],
        )


@dataclass(frozen=True, slots=True)
class MinuteTrades:
    """Trades of minutes as matrices of (minute, trade); ``real`` marks the cells that are trades.

    Prices are in ticks and amounts in units (of the series' decimals); times are microseconds UTC.
    """

    minute: Ints
    real: NDArray[np.bool_]
    time_us: Ints
    price: Ints
    amount: Ints
    buy: NDArray[np.bool_]

    def until(self, time_us: float) -> MinuteTrades:
        """Only those that have happened by an instant."""
        happened = self.real & (self.time_us <= time_us)
        return MinuteTrades(
            self.minute, happened, self.time_us, self.price, self.amount * happened, self.buy
        )

    def columns(self, *, price_decimals: int, amount_decimals: int) -> TradeColumns:
        """The trades in order of time."""
        real = self.real
        ids = (self.minute // MINUTE_MS)[:, None] * 16 + np.arange(MOST_TRADES)
        return TradeColumns(
            self.time_us[real],
            self.price[real] / 10.0**price_decimals,
            self.amount[real] / 10.0**amount_decimals,
            self.buy[real],
            ids[real],
        )


def trades_of(
    minutes: Candles, *, key: int, price_decimals: int, amount_decimals: int
) -> MinuteTrades:
    """The trades of the minutes that have any."""
    traded = minutes.take(minutes.volume > 0)
    ticks = [
        np.rint(column * 10.0**price_decimals).astype(np.int64)
        for column in (traded.open, traded.high, traded.low, traded.close)
    ]
    opened, high, low, closed = ticks
    units = np.rint(traded.volume * 10.0**amount_decimals).astype(np.int64)
    index = (traded.time // MINUTE_MS)[:, None] * MOST_TRADES + np.arange(MOST_TRADES)
    noise = hashes(key, index.ravel()).reshape(index.shape)
    moved = high > low
    pick = (noise[:, 0] >> np.uint64(40)).astype(np.int64)
    number = np.where(moved, 4 + pick % (MOST_TRADES - 3), 1 + pick % 3)
    number = np.where(units >= number, number, np.where(moved, 4, 1))

    position = np.arange(MOST_TRADES)
    real = position < number[:, None]
    price = low[:, None] + (noise % (high - low + 1).astype(np.uint64)[:, None]).astype(np.int64)
    price[:, 0] = opened
    high_first = (pick & 1 == 0) & moved
    price[:, 1] = np.where(moved, np.where(high_first, high, low), opened)
    price[:, 2] = np.where(moved, np.where(high_first, low, high), opened)
    rows = np.arange(len(traded))
    price[rows, number - 1] = closed

    amount = _split(units, number, real, noise)
    jitter = (noise >> np.uint64(20)).astype(np.int64) % (_MINUTE_US - 1_000)
    offset = (position * _MINUTE_US + jitter) // number[:, None]
    time_us = np.where(real, traded.time[:, None] * 1_000 + offset, _NEVER)
    buy = (noise >> np.uint64(7)) & np.uint64(1) == 0
    return MinuteTrades(traded.time, real, time_us, price, amount, buy)


def _split(units: Ints, number: Ints, real: NDArray[np.bool_], noise: NDArray[np.uint64]) -> Ints:
    """Shares of each minute's volume, at least one unit each if there are enough; sums are exact."""
    weight = (1 + (noise >> np.uint64(32) & np.uint64(63)).astype(np.int64)) * real
    spare = units - number
    share = 1 + spare[:, None] * weight // weight.sum(axis=1)[:, None]
    share = np.where(real & (spare >= 0)[:, None], share, 0)
    share[np.arange(len(units)), number - 1] += units - share.sum(axis=1)
    return share


def with_sums(
    minutes: Candles, trades: MinuteTrades, *, price_decimals: int, amount_decimals: int
) -> Candles:
    """The minutes with trade count, quote volume and taker volumes filled in from the trades."""
    count = np.zeros(len(minutes), dtype=np.int64)
    quote, taker_base, taker_quote = np.zeros((3, len(minutes)))
    at = np.searchsorted(minutes.time, trades.minute)
    value = trades.price.astype(float) * trades.amount
    price_scale, amount_scale = 10.0**price_decimals, 10.0**amount_decimals
    count[at] = trades.real.sum(axis=1)
    quote[at] = value.sum(axis=1) / price_scale / amount_scale
    taker_base[at] = (trades.amount * trades.buy).sum(axis=1) / amount_scale
    taker_quote[at] = (value * trades.buy).sum(axis=1) / price_scale / amount_scale
    return with_trade_sums(
        minutes, count=count, quote=quote, taker_base=taker_base, taker_quote=taker_quote
    )


def candle_so_far(
    trades: MinuteTrades, *, price_decimals: int, amount_decimals: int
) -> Candles | None:
    """The candle that the trades of one minute make, or None without a trade."""
    real = trades.real[0]
    if not real.any():
        return None
    price = trades.price[0][real] / 10.0**price_decimals
    one = Candles(
        trades.minute,
        price[:1],
        price.max(keepdims=True),
        price.min(keepdims=True),
        price[-1:],
        trades.amount[0][real].sum(keepdims=True) / 10.0**amount_decimals,
        *(np.zeros(1, dtype) for dtype in (np.int64, float, float, float)),
    )
    return with_sums(one, trades, price_decimals=price_decimals, amount_decimals=amount_decimals)
