"""The rules once more, row by row and in plain Python: what should come of answers.

Written apart from :mod:`crypto_pipeline.core`, of which it uses nothing but the text of a row as it
was received.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

from crypto_pipeline.core.rows import as_received

DAY: Final = 86_400_000
_YEAR_10000: Final = 253_402_300_800_000


class Row(NamedTuple):
    """One row of an answer, read. ``received`` is None for six plain numbers."""

    time: int | None
    values: tuple[float, ...]
    received: str | None


class Statement(NamedTuple):
    """What one answer says of one candle."""

    fetched_at: int
    now: int
    final: bool
    rows: tuple[Row, ...]


Candle = tuple[str, str, int | None]
#: Symbol, timeframe, rule, the row as received.
Refusal = tuple[str, str, str, str]


@dataclass(kw_only=True)
class Asked:
    """One answer: what was asked, what came, when."""

    symbol: str
    timeframe: str
    length: int
    start: int
    end: int
    rows: Sequence[Any]
    columns: Sequence[Any]
    unit: int
    fetched_at: int
    now: int


@dataclass
class Expected:
    """What a partition should hold."""

    candles: dict[Candle, tuple[tuple[float, ...], int]] = field(default_factory=dict)
    forming: dict[Candle, tuple[tuple[float, ...], int]] = field(default_factory=dict)
    refused: Counter[Refusal] = field(default_factory=Counter)
    recorded: dict[Refusal, int] = field(
        default_factory=dict
    )  # each as often as an answer holds it


class Oracle:
    """Takes answers in the order they come; says what each day should hold."""

    def __init__(self, *, settle: int, extra_rows: bool) -> None:
        self._settle = settle
        self._extra_rows = extra_rows
        self._days: defaultdict[int, defaultdict[Candle, list[Statement]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.unasked = 0

    def answer(self, asked: Asked) -> list[Row]:
        """Take an answer; its rows, read."""
        rows = [read(row, asked.columns, asked.unit) for row in asked.rows]
        before = self.final_before(asked, rows)
        by_candle: defaultdict[tuple[int, int | None], list[Row]] = defaultdict(list)
        for row in rows:
            inside = row.time is not None and asked.start <= row.time < asked.end
            day = (row.time if inside and row.time is not None else asked.start) // DAY
            real = row.time is not None and row.time <= asked.now + 5_000
            if self._extra_rows and real and not inside:
                self.unasked += 1
                continue
            by_candle[day, row.time].append(row)
        for (day, time), group in by_candle.items():
            final = time is not None and time < before
            statement = Statement(asked.fetched_at, asked.now, final, tuple(group))
            self._days[day][asked.symbol, asked.timeframe, time].append(statement)
        return rows

    def final_before(self, asked: Asked, rows: Iterable[Row]) -> int:
        """Closed long enough, or a later candle has begun."""
        before = (asked.now - self._settle) // asked.length * asked.length
        begun = [
            row.time
            for row in rows
            if row.time is not None and row.time % asked.length == 0 and row.time <= asked.now
        ]
        return max([before, *begun])

    def expected(self, day: int, lengths: dict[str, int]) -> Expected:
        """What the day should hold after all answers so far."""
        result = Expected()
        for key, statements in self._days[day].items():
            symbol, timeframe, time = key
            newest: Statement | None = None
            stands: Row | None = None
            for statement in remembered(statements, timeless=time is None):
                first: Row | None = None
                here: Counter[Refusal] = Counter()
                for row in statement.rows:
                    rule = broken(row, lengths[timeframe], statement.now, day * DAY)
                    if rule is None and first is not None:
                        rule = "duplicate"
                    if rule is None:
                        first = row
                    else:
                        text = row.received or as_received([row.time, *row.values])
                        here[symbol, timeframe, rule, text] += 1
                result.refused += here
                for refusal, times in here.items():
                    result.recorded[refusal] = max(times, result.recorded.get(refusal, 0))
                if first is not None:
                    newest, stands = statement, first
            if newest is not None and stands is not None:
                into = result.candles if newest.final else result.forming
                into[key] = (stands.values, newest.fetched_at)
        return result


def remembered(statements: Sequence[Statement], *, timeless: bool) -> list[Statement]:
    """Without repeats, and of a forming candle the newest only."""
    if any(statement.final for statement in statements):
        statements = [statement for statement in statements if statement.final]
    kept: list[Statement] = []
    for place, statement in enumerate(statements):
        if place == 0 or not _alike(statement, statements[place - 1]):
            kept.append(statement)
    return kept if timeless or kept[-1].final else kept[-1:]


def _alike(one: Statement, two: Statement) -> bool:
    def same(mine: Row, theirs: Row) -> bool:
        return mine.received == theirs.received and all(
            a == b or (math.isnan(a) and math.isnan(b))
            for a, b in zip(mine.values, theirs.values, strict=True)
        )

    return len(one.rows) == len(two.rows) and all(map(same, one.rows, two.rows))


def read(row: Any, columns: Sequence[Any], unit: int) -> Row:
    """The row's six numbers, by their places or names."""
    cells = [_cell(row, column) for column in columns]
    time_number = number(cells[0])
    time = None
    if time_number is not None and math.isfinite(time_number) and time_number.is_integer():
        time = int(time_number) * unit
        if not 0 <= time < _YEAR_10000:
            time = None
    values = tuple(math.nan if one is None else one for one in map(number, cells[1:]))
    plain = time is not None and all(map(math.isfinite, values))
    return Row(time, values, None if plain else as_received(row))


def _cell(row: Any, column: Any) -> Any:
    if isinstance(column, str):
        return row.get(column) if isinstance(row, dict) else None
    if isinstance(row, list) and column < len(row):
        return row[column]
    return None


def number(cell: Any) -> float | None:
    """A JSON number, or a text of ASCII digits with sign, point and exponent at most."""
    if type(cell) in (int, float):
        try:
            return float(cell)
        except OverflowError:
            return None
    if type(cell) is not str or not cell or not set(cell) <= set("0123456789+-.eE"):
        return None
    try:
        Decimal(cell)
    except InvalidOperation:
        return None
    return float(cell)


def broken(row: Row, length: int, now: int, day_start: int) -> str | None:  # noqa: C901, PLR0911 - the rules
    """The first rule the row breaks."""
    if row.time is None:
        return "open_time_invalid"
    if row.time > now + 5_000:
        return "in_future"
    if row.time % length:
        return "off_grid"
    if not day_start <= row.time < day_start + DAY:
        return "outside_partition"
    opened, high, low, closed, volume = row.values
    prices = (opened, high, low, closed)
    if not all(map(math.isfinite, prices)):
        return "price_not_finite"
    if min(prices) <= 0:
        return "price_not_positive"
    if not math.isfinite(volume):
        return "volume_not_finite"
    if volume < 0:
        return "volume_negative"
    if high < low:
        return "high_below_low"
    if not low <= opened <= high:
        return "open_outside_range"
    if not low <= closed <= high:
        return "close_outside_range"
    return None
