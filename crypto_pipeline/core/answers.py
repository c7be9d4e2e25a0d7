"""From the rows of one answer to columns, in bulk and without losing what a row said.

ccxt converts a page candle by candle and turns what it cannot read into ``None``; here a page is
converted column by column, and a row that is more (or less) than its six numbers keeps the text it
came as, so that validation can refuse it by name and show it as received.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crypto_pipeline.core.candles import VALUES, as_observations
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import timeframe_ms

#: Times outside are not times: before the epoch, or past what a calendar can show (year 9999).
_TIME_BOUNDS_MS: Final = (0, 253_402_300_800_000)
_NO_TIME: Final = np.iinfo(np.int64).min  # numpy's NaT
_RECEIVED_LIMIT: Final = 2_000


class Layout(NamedTuple):
    """Where an exchange puts the six numbers of a candle in a row.

    ``positions``: index of open_time, open, high, low, close, volume; ``time_unit_ms``: what one
    unit of open_time is worth.
    """

    positions: tuple[int, int, int, int, int, int]
    time_unit_ms: int = 1


CCXT_LAYOUT: Final = Layout((0, 1, 2, 3, 4, 5))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an exchange answered to one window of one series.

    Attributes:
        window: what was asked for.
        rows: the rows of the answer, as received, in ``layout``.
        fetched_at: our clock when the answer came, ms.
        clock_offset_ms: the exchange's clock minus ours.
    """

    symbol: str
    timeframe: str
    window: Interval
    rows: Sequence[object]
    layout: Layout
    fetched_at: int
    clock_offset_ms: int
    source: str = "ohlcv"

    @property
    def exchange_now(self) -> int:
        """The exchange's clock when it answered, ms."""
        return self.fetched_at + self.clock_offset_ms


def settled_before(exchange_now: int, *, timeframe: str, settle_ms: int) -> int:
    """Candles that open before this instant are final: closed for ``settle_ms`` by that clock."""
    length = timeframe_ms(timeframe)
    return (exchange_now - settle_ms) // length * length


def observations_of(answer: Answer, *, run_id: str, settle_ms: int) -> pd.DataFrame:
    """The answer's rows as observations, in the order they came.

    A candle is final when it has been closed for ``settle_ms`` by the exchange's clock, or when a
    later candle stands in the same answer (a row that is itself in the future proves nothing).
    """
    open_time, values, received = _columns(answer.rows, answer.layout)
    final = open_time < settled_before(
        answer.exchange_now, timeframe=answer.timeframe, settle_ms=settle_ms
    )
    started = open_time[open_time <= answer.exchange_now]
    if len(started):
        final |= open_time < started.max()
    final &= open_time != _NO_TIME
    rows = len(open_time)
    return as_observations(
        pd.DataFrame(
            {
                "symbol": pd.Categorical.from_codes(np.zeros(rows, np.int8), [answer.symbol]),
                "timeframe": pd.Categorical.from_codes(np.zeros(rows, np.int8), [answer.timeframe]),
                "open_time": open_time.view("datetime64[ms]"),
                **dict(zip(VALUES, values, strict=True)),
                "final": final,
                "fetched_at": np.full(rows, answer.fetched_at).view("datetime64[ms]"),
                "run_id": pd.Categorical.from_codes(np.zeros(rows, np.int8), [run_id]),
                "source": pd.Categorical.from_codes(np.zeros(rows, np.int8), [answer.source]),
                "clock_offset_ms": np.full(rows, answer.clock_offset_ms, np.int32),
                "received": pd.Series(received, dtype="str"),
            }
        ).assign(
            open_time=lambda frame: frame["open_time"].dt.tz_localize("UTC"),
            fetched_at=lambda frame: frame["fetched_at"].dt.tz_localize("UTC"),
        )
    )


_Columns = tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float64]], list[str | None]]


def _columns(rows: Sequence[object], layout: Layout) -> _Columns:
    if not rows:
        return np.empty(0, np.int64), [np.empty(0) for _ in VALUES], []
    try:
        columns = list(zip(*rows, strict=True))
        open_time = _whole_numbers(columns[layout.positions[0]]) * layout.time_unit_ms
        values = [_numbers(columns[position]) for position in layout.positions[1:]]
    except (TypeError, ValueError, IndexError, OverflowError):
        return _columns_by_row(rows, layout)
    low, high = _TIME_BOUNDS_MS
    if open_time.min() < low or open_time.max() >= high:
        return _columns_by_row(rows, layout)
    if not all(np.isfinite(column).all() for column in values):
        return _columns_by_row(rows, layout)
    return open_time, values, [None] * len(rows)


def _whole_numbers(column: tuple[object, ...]) -> npt.NDArray[np.int64]:
    """A column of integers or of their decimal text; ValueError if any cell is something else."""
    array = pa.array(column)
    if not (pa.types.is_integer(array.type) or pa.types.is_string(array.type)) or array.null_count:
        raise ValueError("not a column of integers")
    return np.asarray(pc.cast(array, pa.int64()))


def _numbers(column: tuple[object, ...]) -> npt.NDArray[np.float64]:
    """A column of numbers or of their decimal text; ValueError if any cell is something else."""
    array = pa.array(column)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)):
        raise ValueError("not a column of numbers")
    if array.null_count:
        raise ValueError("a null among the numbers")
    return np.asarray(pc.cast(array, pa.float64(), safe=False))


def _columns_by_row(rows: Sequence[object], layout: Layout) -> _Columns:
    """The careful way, taken when any row of the page is not six plain numbers."""
    open_time = np.full(len(rows), _NO_TIME, np.int64)
    values = [np.full(len(rows), math.nan) for _ in VALUES]
    received: list[str | None] = []
    for index, row in enumerate(rows):
        time = _time(_cell(row, layout.positions[0]), layout.time_unit_ms)
        numbers = [_number(_cell(row, position)) for position in layout.positions[1:]]
        if time is not None:
            open_time[index] = time
        for column, number in zip(values, numbers, strict=True):
            column[index] = number
        plain = time is not None and all(map(math.isfinite, numbers))
        received.append(None if plain else as_received(row))
    return open_time, values, received


def as_received(row: object) -> str:
    """A row as JSON text, cut to a length a person can read."""
    return json.dumps(row, default=str, ensure_ascii=False)[:_RECEIVED_LIMIT]


def _cell(row: object, position: int) -> object:
    if isinstance(row, list | tuple) and position < len(row):
        return row[position]
    return None


def _number(cell: object) -> float:
    """A JSON number or its decimal text; NaN for anything else (bool, null, ``1_000``, lists)."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return math.nan
    if isinstance(cell, str) and (not cell.strip() or "_" in cell):
        return math.nan
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return math.nan


def _time(cell: object, unit_ms: int) -> int | None:
    number = _number(cell)
    if not math.isfinite(number) or number != int(number):
        return None
    time = int(number) * unit_ms
    low, high = _TIME_BOUNDS_MS
    return time if low <= time < high else None
