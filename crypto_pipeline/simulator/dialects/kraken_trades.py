"""Kraken's Trades: pages of 1,000, walked by a cursor in nanoseconds.

``since`` is exclusive; ``last`` of one answer is ``since`` of the next. Without ``since`` the
newest trades come. A ``since`` in seconds is understood too, as by Kraken.

Pages are cut from rendered days that stay in memory, as pages of candles are: a client that walks
millions of trades pays for each day once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.simulator.dialects.base import bracketed
from crypto_pipeline.simulator.rendering import Number, render_rows
from crypto_pipeline.simulator.truth import Series
from crypto_pipeline.simulator.wire import Answer, Buffer

_MOST = 1_000
_NS_IF_ABOVE = 10**12  # smaller numbers are seconds
_DECIMALS = 8
_MOST_DAYS = 64  # in memory: half a megabyte each


def page(params: Mapping[str, str], pair: str, series: Series, now_ms: float) -> Answer:
    """Trades after the cursor that have happened by now.

    Raises:
        ValueError: a parameter is not a number.
    """
    count = min(int(params.get("count", _MOST)), _MOST)
    if "since" in params:
        since_ns = _nanoseconds(params["since"])
        runs = _after(series, since_ns, now_ms, count)
    else:
        since_ns = 0
        runs = _newest(series, now_ms, count)
    last = runs[-1].newest_us * 1_000 if runs else since_ns
    head = b'{"error":[],"result":{"%b":[' % pair.encode()
    return Answer(bracketed(head, [run.rows for run in runs], b'],"last":"%d"}}' % last))


def _nanoseconds(text: str) -> int:
    number = float(text)
    return int(text) if number > _NS_IF_ABOVE else round(number * 1e9)


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of one day, joined by commas."""

    rows: Buffer
    count: int
    newest_us: int


@dataclass(frozen=True, slots=True)
class _Day:
    """The rendered trades of one UTC day, ascending; each row ends in a comma."""

    series: Series
    times_us: array[int]
    starts: array[int]
    data: bytes

    def run(self, first: int, end: int) -> _Run:
        rows = memoryview(self.data)[self.starts[first] : self.starts[end] - 1]
        return _Run(rows, end - first, self.times_us[end - 1])


def _after(series: Series, since_ns: int, now_ms: float, count: int) -> list[_Run]:
    listed, delisted = series.source.span
    since_us, now_us = since_ns // 1_000, int(now_ms * 1_000)
    runs: list[_Run] = []
    start = max(since_us // 1_000, listed) // DAY_MS
    end = (min(int(now_ms) + MINUTE_MS, delisted) - 1) // DAY_MS
    for number in range(start, end + 1):
        day = _day(series, number)
        first = bisect_right(day.times_us, since_us)
        until = min(first + count, bisect_right(day.times_us, now_us))
        if first < until:
            runs.append(day.run(first, until))
            count -= until - first
        if not count:
            break
    return runs


def _newest(series: Series, now_ms: float, count: int) -> list[_Run]:
    listed, delisted = series.source.span
    runs: list[_Run] = []
    for number in _backwards(listed, min(int(now_ms) + MINUTE_MS, delisted)):
        day = _day(series, number)
        until = bisect_right(day.times_us, int(now_ms * 1_000))
        first = max(0, until - count)
        if first < until:
            runs.append(day.run(first, until))
            count -= until - first
        if not count:
            break
    return runs[::-1]


def _backwards(start_ms: int, end_ms: int) -> Iterator[int]:
    return iter(range((end_ms - 1) // DAY_MS, start_ms // DAY_MS - 1, -1))


#: The days read last. A day knows its series, so that no other object can take its identity.
_days: Final[OrderedDict[tuple[int, int], _Day]] = OrderedDict()


def _day(series: Series, number: int) -> _Day:
    key = id(series), number
    day = _days.get(key)
    if day is None:
        day = _days[key] = _rendered(series, number)
        while len(_days) > _MOST_DAYS:
            _days.popitem(last=False)
    else:
        _days.move_to_end(key)
    return day


def _rendered(series: Series, number: int) -> _Day:
    trades = series.trades(number * DAY_MS, (number + 1) * DAY_MS)
    price, amount = series.source.price_decimals, series.source.volume_decimals
    data, starts = render_rows(
        [
            b'["',
            Number(trades.price, price, price),
            b'","',
            Number(trades.amount, _DECIMALS, amount),
            b'",',
            Number(trades.time_us / 1e6, 6),
            b',"?","?","",',
            Number(trades.id),
            b"],",
        ],
        len(trades.id),
    )
    text = np.frombuffer(data, np.uint8).copy()
    side, kind = np.flatnonzero(text == ord("?")).reshape(-1, 2).T
    text[side] = np.where(trades.buy, ord("b"), ord("s"))
    text[kind] = np.where(trades.id % 2, ord("m"), ord("l"))
    return _Day(
        series,
        array("q", trades.time_us.tobytes()),
        array("q", starts.astype(np.int64).tobytes()),
        text.tobytes(),
    )
