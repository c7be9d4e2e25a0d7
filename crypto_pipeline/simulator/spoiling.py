"""Bad candles: one row of a true answer, spoiled in a way that exchanges have shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from crypto_pipeline.core.timeframes import DAY_MS
from crypto_pipeline.simulator.dialects import Dialect, RowLayout
from crypto_pipeline.simulator.faults import Fault, Spoil

Row = list[Any]
_OFF_GRID_MS = 7_000


def spoiled_candles(body: bytes, fault: Fault, dialect: Dialect) -> bytes:
    """The body with its rows spoiled as a ``bad_candles`` fault says.

    Bodies without rows (errors, empty pages) and rows that are not there stay as they are.
    """
    content = _decoded(body)
    rows = dialect.rows_in(content) if fault.spoil else None
    if not rows or fault.spoil is None:
        return body
    layout = dialect.layout
    if fault.open_times is None:
        picked = [rows[len(rows) // 2]]
    else:
        times = {time // layout.time_unit_ms for time in fault.open_times}
        picked = [row for row in _timed(rows, layout) if row[layout.time] in times]
    for row in picked:
        position = next(index for index, other in enumerate(rows) if other is row)
        rows[position : position + 1] = _spoiled(fault.spoil, row, rows, layout)
    return _encoded(content)


def _timed(rows: list[Row], layout: RowLayout) -> list[Row]:
    """The rows that no earlier fault has taken the time from."""
    return [row for row in rows if len(row) > layout.time and row[layout.time] is not None]


def renamed_pair(body: bytes, pair: str) -> bytes:
    """A Kraken body with its rows under another pair's name."""
    content = _decoded(body)
    result = content.get("result") if isinstance(content, dict) else None
    if not isinstance(result, dict):
        return body
    content["result"] = {"last" if key == "last" else pair: rows for key, rows in result.items()}
    return _encoded(content)


def _decoded(body: bytes) -> Any:
    """JSON, or None for what an earlier fault made of it."""
    try:
        return json.loads(body)
    except ValueError:
        return None


def _encoded(content: object) -> bytes:
    """The stdlib writes NaN as the bare word NaN, as careless exchanges do."""
    return json.dumps(content, separators=(",", ":")).encode()


def _spoiled(spoil: Spoil, row: Row, rows: list[Row], layout: RowLayout) -> list[Row]:
    """What stands in the answer in place of a row."""
    simple: dict[Spoil, Callable[[], list[Row]]] = {
        "null_row": lambda: [[None] * len(row)],
        "empty_row": lambda: [[]],
        "missing": list,
        "duplicate": lambda: [row, list(row)],
        "conflicting_duplicate": lambda: [row, _with_factor(row, layout, 1.5)],
        "revised": lambda: [_with_factor(row, layout, 1.01)],
        "off_grid": lambda: [
            _at(row, layout, row[layout.time] * layout.time_unit_ms + _OFF_GRID_MS)
        ],
        "future": lambda: [row, _at(row, layout, _time(max, rows, layout) + DAY_MS)],
        "outside": lambda: [_at(row, layout, _time(min, rows, layout) - DAY_MS), row],
        "high_below_low": lambda: [_swapped(row, layout)],
    }
    if spoil in simple:
        return simple[spoil]()
    close: dict[Spoil, Any] = {
        "negative_price": _number(-1.0, layout),
        "zero_price": _number(0.0, layout),
        "nan": float("nan"),
        "nan_text": "NaN",
        "null": None,
        "text": "abc",
    }
    spoiled = list(row)
    spoiled[layout.close] = close[spoil]
    return [spoiled]


def _number(value: float, layout: RowLayout) -> object:
    return f"{value:.8f}" if layout.text else value


def _with_factor(row: Row, layout: RowLayout, factor: float) -> Row:
    """High, close and volume times a factor: another candle, and a valid one."""
    changed = list(row)
    for column in (layout.high, layout.volume):
        changed[column] = _number(float(row[column]) * factor or 1.0, layout)
    return changed


def _swapped(row: Row, layout: RowLayout) -> Row:
    """High below low, even where they were equal."""
    swapped = list(row)
    swapped[layout.high] = row[layout.low]
    swapped[layout.low] = _number(float(row[layout.high]) * 1.01, layout)
    return swapped


def _at(row: Row, layout: RowLayout, time_ms: int) -> Row:
    moved = list(row)
    moved[layout.time] = time_ms // layout.time_unit_ms
    return moved


def _time(pick: Callable[[list[int]], int], rows: list[Row], layout: RowLayout) -> int:
    return (
        pick([row[layout.time] for row in rows if row and row[layout.time]]) * layout.time_unit_ms
    )
