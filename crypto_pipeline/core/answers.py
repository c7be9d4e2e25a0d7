"""From the rows of one answer to columns, in bulk and without losing what a row said.

ccxt converts a page candle by candle and turns what it cannot read into ``None``; here a page is
converted column by column, and a row that is more (or less) than its six numbers keeps the text it
came as, so that validation can refuse it by name and show it as received.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, empty_observations
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import timeframe_ms

#: Times outside are not times: before the epoch, or past what a calendar can show (year 9999).
_TIME_BOUNDS_MS: Final = (0, 253_402_300_800_000)
_NO_TIME: Final = np.iinfo(np.int64).min  # numpy's NaT
_RECEIVED_LIMIT: Final = 2_000
#: What counts as the text of a number: no padding, no ``_``, no other script's digits, no ``inf``.
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


Positions = tuple[int, int, int, int, int, int] | tuple[str, str, str, str, str, str]


class Layout(NamedTuple):
    """Where an exchange puts the six numbers of a candle in a row.

    ``positions``: index of open_time, open, high, low, close, volume, or their names where rows are
    objects; ``time_unit_ms``: what one unit of open_time is worth.
    """

    positions: Positions
    time_unit_ms: int = 1


CCXT_LAYOUT: Final = Layout((0, 1, 2, 3, 4, 5))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an exchange answered to one window of one series.

    Attributes:
        window: what was asked for.
        rows: the rows of the answer, as received, in ``layout``.
        fetched_at: our clock when the answer was asked for, ms: it can be as old as that.
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
        """The exchange's clock when it answered, ms, at the earliest."""
        return self.fetched_at + self.clock_offset_ms


def settled_before(exchange_now: int, *, timeframe: str, settle_ms: int) -> int:
    """Candles that open before this instant are final: closed for ``settle_ms`` by that clock."""
    length = timeframe_ms(timeframe)
    return (exchange_now - settle_ms) // length * length


def observations_of(answer: Answer, *, run_id: str, settle_ms: int) -> pd.DataFrame:
    """The answer's rows as observations, in the order they came.

    A candle is final when it has been closed for ``settle_ms`` by the exchange's clock, or when a
    later candle stands in the same answer (a row in the future or off the grid proves nothing).
    """
    return observations_of_all([answer], run_id=run_id, settle_ms=settle_ms)


def observations_of_all(answers: Sequence[Answer], *, run_id: str, settle_ms: int) -> pd.DataFrame:
    """The rows of several answers, one after the other; see :func:`observations_of`.

    A frame is built once for all of them: building one costs more than reading a page's numbers.
    """
    if not answers:
        return empty_observations()
    parsed = _together(answers) or [_columns(answer.rows, answer.layout) for answer in answers]
    sizes = [len(open_time) for open_time, _, _ in parsed]

    def each(values: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array(values, np.int64), sizes)

    def names(values: Sequence[str]) -> pd.Categorical:
        codes, categories = pd.factorize(np.array(values, dtype=object))
        return pd.Categorical.from_codes(np.repeat(codes, sizes), pd.Index(categories, dtype="str"))

    finals = [
        _final(open_time, answer, settle_ms=settle_ms)
        for answer, (open_time, _, _) in zip(answers, parsed, strict=True)
    ]
    columns = {
        "symbol": names([answer.symbol for answer in answers]),
        "timeframe": names([answer.timeframe for answer in answers]),
        "open_time": _utc_times(np.concatenate([open_time for open_time, _, _ in parsed])),
        **{
            name: np.concatenate([values[index] for _, values, _ in parsed])
            for index, name in enumerate(VALUES)
        },
        "final": np.concatenate(finals),
        "fetched_at": _utc_times(each([answer.fetched_at for answer in answers])),
        "run_id": names([run_id] * len(answers)),
        "source": names([answer.source for answer in answers]),
        "clock_offset_ms": each([answer.clock_offset_ms for answer in answers]),
        "received": _received_texts([texts for _, _, texts in parsed], sizes),
    }
    return pd.DataFrame({name: columns[name] for name in OBSERVATION_DTYPES})


def final_before(answer: Answer, open_time: npt.NDArray[np.int64], *, settle_ms: int) -> int:
    """Candles of this answer that open before this instant are final.

    Args:
        answer: the answer.
        open_time: of its rows, ms.
        settle_ms: how long after its close a candle may still change.
    """
    before = settled_before(answer.exchange_now, timeframe=answer.timeframe, settle_ms=settle_ms)
    on_grid = open_time % timeframe_ms(answer.timeframe) == 0
    started = open_time[on_grid & (open_time <= answer.exchange_now)]
    return max(before, int(started.max())) if len(started) else before


def _final(
    open_time: npt.NDArray[np.int64], answer: Answer, *, settle_ms: int
) -> npt.NDArray[np.bool_]:
    before = final_before(answer, open_time, settle_ms=settle_ms)
    return (open_time < before) & (open_time != _NO_TIME)


def _utc_times(times: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(times.view("datetime64[ms]")).tz_localize("UTC")


#: Times, the five values, and the text each row came as where it is more than its numbers; None if
#: no row is.
_Columns = tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float64]], list[str | None] | None]


def _received_texts(pages: Sequence[list[str | None] | None], sizes: Sequence[int]) -> Any:
    if not any(pages):
        return pd.array(pa.nulls(sum(sizes), pa.large_string()), dtype="str")
    texts = (page or [None] * size for page, size in zip(pages, sizes, strict=True))
    return pd.array(list(chain.from_iterable(texts)), dtype="str")


def _together(answers: Sequence[Answer]) -> list[_Columns] | None:
    """The columns of all answers at once; None where a row of any is not six plain numbers."""
    layout = answers[0].layout
    rows = list(chain.from_iterable(answer.rows for answer in answers))
    if any(answer.layout != layout for answer in answers):
        return None
    if not rows:
        return None
    try:
        cells = _cells(rows, layout)
    except (TypeError, LookupError):
        return None
    found = _plain(cells, layout)
    if found is None:
        return None
    time, values = found
    borders = np.cumsum([len(answer.rows) for answer in answers])[:-1]
    parts = zip(
        np.split(time, borders), *(np.split(column, borders) for column in values), strict=True
    )
    return [(times, list(numbers), None) for times, *numbers in parts]


def _cells(rows: Sequence[Any], layout: Layout) -> list[list[object]]:
    """The six columns of rows; TypeError or LookupError unless all of them are alike."""
    kinds = set(map(type, rows))
    if isinstance(layout.positions[0], str):
        if kinds != {dict}:
            raise TypeError("not all rows are objects")
    elif not kinds <= {list, tuple}:  # texts and dicts can be iterated, too
        raise TypeError("not all rows are lists")
    return [[row[column] for row in rows] for column in layout.positions]


def _plain(
    cells: Sequence[Sequence[object]], layout: Layout
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float64]]] | None:
    """Columns of cells as numbers: times in ms and the five values; None if any cell is not one."""
    try:
        time = _whole_numbers(cells[0])
        values = [_numbers(column) for column in cells[1:]]
    except (TypeError, ValueError, OverflowError):
        return None
    low, high = _TIME_BOUNDS_MS
    if time.min() < low or time.max() > (high - 1) // layout.time_unit_ms:
        return None
    if not all(np.isfinite(column).all() for column in values):
        return None
    return time * layout.time_unit_ms, values


def _columns(rows: Sequence[object], layout: Layout) -> _Columns:
    if not rows:
        return np.empty(0, np.int64), [np.empty(0) for _ in VALUES], None
    try:
        cells = _cells(rows, layout)
    except (TypeError, LookupError):
        return _columns_by_row(rows, layout)
    found = _plain(cells, layout)
    if found is None:
        return _columns_by_row(rows, layout)
    return *found, None


def _whole_numbers(column: Sequence[object]) -> npt.NDArray[np.int64]:
    """A column of integers or of their decimal text; ValueError if any cell is something else."""
    kinds = set(map(type, column))
    array = pa.array(column)
    # The cast alone would take 0x10 for 16.
    if kinds != {int} and (kinds != {str} or not pc.all(pc.ascii_is_decimal(array)).as_py()):
        raise ValueError("not a column of integers")
    return np.asarray(pc.cast(array, pa.int64()))


def _numbers(column: Sequence[object]) -> npt.NDArray[np.float64]:
    """A column of numbers or of their decimal text; ValueError if any cell is something else."""
    if isinstance(column[0], str):
        array = pa.array(column, pa.string())  # a TypeError, or a null, for what is no text
        if array.null_count:
            raise ValueError("not a column of texts")
    elif {int, float}.issuperset(map(type, column)):  # pyarrow takes [1.5, True] for floats
        array = pa.array(column)
    else:
        raise ValueError("not a column of numbers")
    return np.asarray(pc.cast(array, pa.float64(), safe=False))


def _columns_by_row(rows: Sequence[object], layout: Layout) -> _Columns:
    """The careful way, taken when any row of the page is not six plain numbers."""
    open_time = np.full(len(rows), _NO_TIME, np.int64)
    values = [np.full(len(rows), math.nan) for _ in VALUES]
    received: list[str | None] = []
    for index, row in enumerate(rows):
        opened, *others = [_cell(row, column) for column in layout.positions]
        time = _time(opened, layout.time_unit_ms)
        numbers = [_number(cell) for cell in others]
        if time is not None:
            open_time[index] = time
        for column, number in zip(values, numbers, strict=True):
            column[index] = number
        plain = time is not None and all(map(math.isfinite, numbers))
        received.append(None if plain else as_received(row))
    return open_time, values, received


def as_received(row: object) -> str:
    """A row as JSON text, cut to a length a person can read."""
    try:
        text = json.dumps(row, default=str, ensure_ascii=False)[:_RECEIVED_LIMIT]
    except (RecursionError, TypeError, ValueError):  # nested or long beyond reason, not JSON at all
        return f"(a {type(row).__name__} that JSON text cannot show)"
    return text.encode("utf-8", "backslashreplace").decode()  # lone surrogates


def _cell(row: object, column: int | str) -> object:
    if isinstance(column, str):
        return row.get(column) if isinstance(row, dict) else None
    if isinstance(row, list | tuple) and column < len(row):
        return row[column]
    return None


def _number(cell: object) -> float:
    """A JSON number or its decimal text; NaN for anything else (bool, null, ``1_000``, lists)."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return math.nan
    if isinstance(cell, str) and not _DECIMAL.fullmatch(cell):
        return math.nan
    try:
        return float(cell)
    except OverflowError:
        return math.nan


def _time(cell: object, unit_ms: int) -> int | None:
    number = _number(cell)
    if not math.isfinite(number) or number != int(number):
        return None
    time = int(number) * unit_ms
    low, high = _TIME_BOUNDS_MS
    return time if low <= time < high else None
