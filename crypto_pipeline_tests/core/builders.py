"""Frames and answers for tests of the core, from as few words as the test needs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, empty_observations
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rows import CCXT_LAYOUT, Layout
from crypto_pipeline.core.rules import NO_TIME, times_ms
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms

DAY = date(2023, 3, 1)
T0 = day_start_ms(DAY)

_DEFAULTS: dict[str, Any] = {
    "symbol": "BTC/USDT",
    "timeframe": "1m",
    "open_time": T0,
    "open": 10.0,
    "high": 12.0,
    "low": 9.0,
    "close": 11.0,
    "volume": 1.5,
    "final": True,
    "fetched_at": T0 + 2 * DAY_MS,
    "run_id": "run-1",
    "source": "ohlcv",
    "clock_offset_ms": 0,
    "received": None,
}


def observations(*rows: dict[str, Any]) -> pd.DataFrame:
    """Observations that differ from a conforming one in what is named. Times are ms, or None."""
    if not rows:
        return empty_observations()
    full = [_DEFAULTS | row for row in rows]
    columns: dict[str, Any] = {name: [row[name] for row in full] for name in OBSERVATION_DTYPES}
    for name in ("open_time", "fetched_at"):
        times = np.array([NO_TIME if time is None else time for time in columns[name]])
        columns[name] = pd.DatetimeIndex(times.view("datetime64[ms]")).tz_localize("UTC")
    for name in ("symbol", "timeframe", "run_id", "source"):
        columns[name] = pd.Categorical(columns[name])
    columns["clock_offset_ms"] = np.array(columns["clock_offset_ms"], np.int64)
    columns["received"] = pd.array(columns["received"], dtype="str")
    return pd.DataFrame(columns)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The inverse of :func:`observations`: plain values; NaN stays NaN, absent is None."""
    columns = {name: frame[name].tolist() for name in frame.columns}
    for name in {"open_time", "fetched_at"} & columns.keys():
        columns[name] = [None if t == NO_TIME else t for t in times_ms(frame[name]).tolist()]
    if "received" in columns:
        columns["received"] = [t if isinstance(t, str) else None for t in columns["received"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def content(record: dict[str, Any]) -> tuple[object, ...]:
    """What an observation says, comparable although NaN is not equal to NaN."""
    values = (record[name] for name in VALUES)
    return *("nan" if math.isnan(v) else v for v in values), record["received"]


def at(minute: float) -> int:
    """The instant so many minutes into the day, ms."""
    return T0 + round(minute * MINUTE_MS)


def span(start: float, end: float) -> Interval:
    """Minutes of the day as an interval."""
    return Interval(at(start), at(end))


def minutes(intervals: Iterable[tuple[int, int]]) -> set[int]:
    """The minutes of the day in the intervals, whose ends must lie on minutes."""
    found = []
    for start, end in intervals:
        assert start < end
        assert (start - T0) % MINUTE_MS == (end - T0) % MINUTE_MS == 0
        found += range((start - T0) // MINUTE_MS, (end - T0) // MINUTE_MS)
    assert len(found) == len(set(found)), "intervals overlap"
    return set(found)


def candle(minute: float, *, close: float = 11.0) -> list[object]:
    """A row in ccxt's layout that keeps the rules, unless its close does not."""
    return [at(minute), 10.0, 12.0, 9.0, close, 1.5]


def answer(
    rows: list[Any],
    *,
    now: int = T0 + DAY_MS,
    offset: int = 0,
    layout: Layout = CCXT_LAYOUT,
    window: Interval | None = None,
    symbol: str = "BTC/USDT",
    timeframe: str = "1m",
) -> Answer:
    """An answer, for ten minutes of BTC/USDT 1m, that came when the exchange's clock showed ``now``."""
    return Answer(
        symbol=symbol,
        timeframe=timeframe,
        window=window or span(0, 10),
        rows=rows,
        layout=layout,
        fetched_at=now - offset,
        clock_offset_ms=offset,
    )
