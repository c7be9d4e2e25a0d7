"""Candles as columns, and their aggregation to longer timeframes.

Aggregation follows trades, as the exchanges' own does: a candle opens with the first *trade* of
its bucket; the flat candle of a quiet minute counts only where the whole bucket is quiet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Candles:
    """Candles of one series in ascending order, one array a column.

    Attributes:
        time: open time, milliseconds UTC.
        volume: in base currency; 0 in a quiet minute.
        count: number of trades.
        quote: volume in quote currency.
        taker_base: volume of trades in which the buyer took, in base currency.
        taker_quote: the same in quote currency.
    """

    time: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    count: Ints
    quote: Floats
    taker_base: Floats
    taker_quote: Floats

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def empty(cls) -> Self:
        """No candles."""
        none = np.empty(0)
        times = np.empty(0, dtype=np.int64)
        return cls(times, none, none, none, none, none, times, none, none, none)

    def take(self, where: slice | NDArray[np.bool_]) -> Self:
        """The candles at some positions."""
        return type(self)(*(getattr(self, column.name)[where] for column in fields(self)))

    def between(self, start_ms: int, end_ms: int) -> Self:
        """The candles that open in ``[start_ms, end_ms)``."""
        first, last = np.searchsorted(self.time, [start_ms, end_ms])
        return self.take(slice(int(first), int(last)))

    @classmethod
    def joined(cls, parts: list[Self]) -> Self:
        """Several runs of candles as one."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            *(
                np.concatenate([getattr(part, column.name) for part in parts])
                for column in fields(cls)
            )
        )


def aggregate(minutes: Candles, timeframe_ms: int, *, volume_decimals: int) -> Candles:
    """Candles of a longer timeframe; volumes are summed exactly, in units of the last decimal."""
    if not len(minutes):
        return minutes
    traded = minutes.take(minutes.volume > 0)
    buckets = _reduce(traded, timeframe_ms, volume_decimals) if len(traded) else traded
    quiet = minutes.take(~np.isin(minutes.time // timeframe_ms, buckets.time // timeframe_ms))
    if not len(quiet):
        return buckets
    flat = _reduce(quiet, timeframe_ms, volume_decimals)
    both = Candles.joined([buckets, flat])
    order = np.argsort(both.time)
    return Candles(*(getattr(both, column.name)[order] for column in fields(Candles)))


def _reduce(minutes: Candles, timeframe_ms: int, volume_decimals: int) -> Candles:
    bucket = minutes.time // timeframe_ms
    first = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - 1))
    last = np.append(first[1:], len(bucket)) - 1
    scale = 10.0**volume_decimals

    def exact_sum(values: Floats) -> Floats:
        return np.add.reduceat(np.rint(values * scale), first) / scale

    return Candles(
        time=bucket[first] * timeframe_ms,
        open=minutes.open[first],
        high=np.maximum.reduceat(minutes.high, first),
        low=np.minimum.reduceat(minutes.low, first),
        close=minutes.close[last],
        volume=exact_sum(minutes.volume),
        count=np.add.reduceat(minutes.count, first),
        quote=np.add.reduceat(minutes.quote, first),
        taker_base=exact_sum(minutes.taker_base),
        taker_quote=np.add.reduceat(minutes.taker_quote, first),
    )


def with_trade_sums(
    candles: Candles, *, count: Ints, quote: Floats, taker_base: Floats, taker_quote: Floats
) -> Candles:
    """The candles with the columns that only trades tell."""
    return replace(
        candles, count=count, quote=quote, taker_base=taker_base, taker_quote=taker_quote
    )
