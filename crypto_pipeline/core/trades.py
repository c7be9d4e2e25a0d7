"""Candles out of trades, page by page, in memory that does not grow with the number of trades.

A candle's open is its first trade, its close the last; a bucket without trades has no candle: what
nobody traded is not invented. Memory holds one open candle a timeframe, and the candles that are
over and were not taken yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from crypto_pipeline.core.timeframes import timeframe_ms

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_US: Final = 1_000  # microseconds in a millisecond


class CandleColumns(NamedTuple):
    """Candles of one timeframe, ascending; ``open_time`` in ms."""

    open_time: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def rows(self, where: slice) -> CandleColumns:
        """The candles at some positions."""
        opened, high, low, close, volume = (column[where] for column in self[1:])
        return CandleColumns(self.open_time[where], opened, high, low, close, volume)

    @classmethod
    def joined(cls, parts: Sequence[CandleColumns]) -> CandleColumns:
        """Several runs of candles as one."""
        if not parts:
            none = np.empty(0)
            return cls(np.empty(0, np.int64), none, none, none, none, none)
        if len(parts) == 1:
            return parts[0]
        times, *values = zip(*parts, strict=True)
        opened, high, low, close, volume = map(np.concatenate, values)
        return cls(np.concatenate(times), opened, high, low, close, volume)


class TradeAggregator:
    """Trades in, candles of several timeframes out.

    Args:
        timeframes: of the candles, such as ``1m`` and ``1h``.
    """

    def __init__(self, timeframes: Iterable[str]) -> None:
        self._candles = {name: _Candles(timeframe_ms(name) * _US) for name in timeframes}
        self._newest_us: int | None = None

    def add(self, times_us: Ints, prices: Floats, amounts: Floats) -> None:
        """Take in the next trades.

        Args:
            times_us: microseconds UTC, ascending (equal ones in the order they were traded), none
                before what was added or taken already.
            prices: of the trades.
            amounts: of the base currency.

        Raises:
            ValueError: columns of different length, or a trade that comes too late. Nothing of the
                page is kept.
        """
        if not len(times_us) == len(prices) == len(amounts):
            raise ValueError(f"{len(times_us)} times, {len(prices)} prices, {len(amounts)} amounts")
        if not len(times_us):
            return
        late = np.flatnonzero(times_us[1:] < times_us[:-1])
        if len(late):
            at = int(late[0]) + 1
            raise ValueError(
                f"trade {at} of the page, at {times_us[at]} µs, is older than the one before it"
            )
        first = int(times_us[0])
        if self._newest_us is not None and first < self._newest_us:
            raise ValueError(
                f"the page begins at {first} µs, before {self._newest_us} µs, which the pages"
                " before it have reached"
            )
        self._newest_us = int(times_us[-1])
        for candles in self._candles.values():
            candles.add(times_us, prices, amounts)

    def take(self, before: int) -> dict[str, CandleColumns]:
        """Candles that end by an instant, each once; trades from before it are too late from now on.

        Args:
            before: ms; every trade from before it has been added.
        """
        self._newest_us = max(before * _US, self._newest_us or 0)
        return {name: candles.take(before * _US) for name, candles in self._candles.items()}


class _Open(NamedTuple):
    """The newest candle; its volume is ``total + lost`` (the low digits that ``total`` cannot hold)."""

    bucket: int
    open: float
    high: float
    low: float
    close: float
    total: float
    lost: float

    def joined(self, later: _Open) -> _Open:
        """With further trades of the same bucket."""
        total = self.total + later.total
        # Neumaier: a day of a busy market spans thousands of pages
        larger, smaller = max(self.total, later.total), min(self.total, later.total)
        return _Open(
            self.bucket,
            self.open,
            max(self.high, later.high),
            min(self.low, later.low),
            later.close,
            total,
            self.lost + later.lost + ((larger - total) + smaller),
        )


class _Candles:
    """The candles of one timeframe: those that are over, and the newest, which is not."""

    def __init__(self, length_us: int) -> None:
        self._length_us = length_us
        self._over: list[CandleColumns] = []
        self._open: _Open | None = None

    def add(self, times_us: Ints, prices: Floats, amounts: Floats) -> None:
        buckets = times_us // self._length_us
        starts = np.concatenate(([0], np.flatnonzero(np.diff(buckets)) + 1))
        page = CandleColumns(
            buckets[starts],
            prices[starts],
            np.maximum.reduceat(prices, starts),
            np.minimum.reduceat(prices, starts),
            prices[np.append(starts[1:], len(prices)) - 1],
            np.add.reduceat(amounts, starts),  # pairwise: exact to a few units in the last place
        )
        first = _row(page, 0)
        if self._open is not None:
            if self._open.bucket == first.bucket:
                first = self._open.joined(first)
            else:
                self._close(self._open)
        if len(starts) == 1:
            self._open = first
            return
        self._close(first)
        if len(starts) > 2:
            self._over.append(self._timed(page.rows(slice(1, -1))))
        self._open = _row(page, -1)

    def take(self, before_us: int) -> CandleColumns:
        if self._open is not None and (self._open.bucket + 1) * self._length_us <= before_us:
            self._close(self._open)
            self._open = None
        over = CandleColumns.joined(self._over)
        ends = over.open_time * _US + self._length_us
        complete = int(np.searchsorted(ends, before_us, side="right"))
        left = over.rows(slice(complete, None))
        self._over = [left] if len(left.open_time) else []
        return over.rows(slice(complete))

    def _close(self, candle: _Open) -> None:
        values = candle.open, candle.high, candle.low, candle.close, candle.total + candle.lost
        opened, high, low, close, volume = (np.array([value]) for value in values)
        one = CandleColumns(np.array([candle.bucket]), opened, high, low, close, volume)
        self._over.append(self._timed(one))

    def _timed(self, candles: CandleColumns) -> CandleColumns:
        """Candles by the number of their bucket to candles by their open time."""
        return candles._replace(open_time=candles.open_time * (self._length_us // _US))


def _row(page: CandleColumns, index: int) -> _Open:
    opened, high, low, close, volume = (float(column[index]) for column in page[1:])
    return _Open(int(page.open_time[index]), opened, high, low, close, total=volume, lost=0.0)
