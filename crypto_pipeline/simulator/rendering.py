"""Columns of numbers to the bytes of JSON rows, thousands at once.

A row is written into a fixed-width byte matrix, absent characters as zero bytes, which one mask
then removes. Values that are not short decimals (replayed oddities) go through ``repr`` instead, so
that whoever parses the text gets exactly the same float64 back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from crypto_pipeline.simulator.truth.candles import Floats, Ints

Bytes = NDArray[np.uint8]

# The four characters of each number below 10,000, as one 32-bit word.
_FOUR_DIGITS: NDArray[np.uint32] = np.frombuffer(
    b"".join(b"%04d" % number for number in range(10_000)), dtype=np.uint32
)
_ROW_START = ord("[")
_ZERO = ord("0")
_LARGEST = 9e18  # of an int64


@dataclass(frozen=True, slots=True)
class Number:
    """A column of numbers.

    Attributes:
        values: finite and not negative.
        decimals: written after the point.
        exact: decimals that write the values exactly; None rounds to ``decimals``.
        trim: leave trailing zeros away (``73400`` for ``73400.00``), as JSON numbers are.
    """

    values: Floats | Ints
    decimals: int = 0
    exact: int | None = None
    trim: bool = False


Part = bytes | Number


def render_rows(parts: list[Part], rows: int) -> tuple[bytes, Ints]:
    """Concatenate the parts of every row; a row has one ``[``, its first character.

    Returns:
        All rows' bytes, and where each row starts (one more than rows: the end).
    """
    if not rows:
        return b"", np.zeros(1, dtype=np.int64)
    columns = [_text(part, rows) for part in parts]
    characters = np.concatenate(columns, axis=1).ravel()
    text = characters[characters != 0]
    starts = np.flatnonzero(text == _ROW_START)
    return text.tobytes(), np.append(starts, len(text))


def _text(part: Part, rows: int) -> Bytes:
    if isinstance(part, bytes):
        return np.broadcast_to(np.frombuffer(part, dtype=np.uint8), (rows, len(part)))
    scaled = _scaled(part)
    return _shortest(cast("Floats", part.values)) if scaled is None else _decimal(scaled, part)


def _scaled(column: Number) -> Ints | None:
    """The values in units of the last decimal; None if integers cannot hold them exactly."""
    if column.decimals == 0 and column.values.dtype.kind == "i":
        return cast("Ints", column.values)
    if column.exact is None:
        return np.rint(column.values * 10.0**column.decimals).astype(np.int64)
    unit = 10.0**column.exact
    units = np.rint(column.values * unit)
    if column.exact > column.decimals or not bool((units / unit == column.values).all()):
        return None
    padding = 10 ** (column.decimals - column.exact)
    if float(units.max()) * padding > _LARGEST:
        return None
    return units.astype(np.int64) * padding


def _decimal(scaled: Ints, column: Number) -> Bytes:
    decimals = column.decimals
    whole, fraction = scaled // 10**decimals, scaled % 10**decimals
    digits = _digits(whole, len(str(int(whole.max()))))
    leading = np.logical_and.accumulate(digits == _ZERO, axis=1)
    leading[:, -1] = False
    digits = np.where(leading, 0, digits)
    if not decimals:
        return digits
    after = _digits(fraction, decimals)
    point = np.full((len(scaled), 1), ord("."), dtype=np.uint8)
    if column.trim:
        trailing = np.logical_and.accumulate((after == _ZERO)[:, ::-1], axis=1)[:, ::-1]
        after = np.where(trailing, 0, after)
        point[:, 0] *= fraction != 0
    return np.concatenate([digits, point, after], axis=1)


def _digits(numbers: Ints, width: int) -> Bytes:
    """Zero-padded decimal digits."""
    groups = -(-width // 4)
    words = np.empty((len(numbers), groups), dtype=np.uint32)
    rest = numbers
    for group in range(groups - 1, 0, -1):
        more = rest // 10_000
        words[:, group] = _FOUR_DIGITS[rest - more * 10_000]
        rest = more
    words[:, 0] = _FOUR_DIGITS[rest]
    return words.view(np.uint8)[:, 4 * groups - width :]


def _shortest(values: Floats) -> Bytes:
    texts = [np.format_float_positional(value, trim="-").encode() for value in values]
    width = max(map(len, texts))
    padded = b"".join(text.ljust(width, b"\0") for text in texts)
    return np.frombuffer(padded, dtype=np.uint8).reshape(-1, width)
