"""PostgreSQL's binary COPY stream, built in bulk with NumPy.

psycopg's own ``write_row`` costs microseconds of Python for each row, this a few tenths of one.
Only what candles and their hours need: text, double precision, timestamptz and smallint, no NULLs. Pure bytes: no
connection, no SQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BLOCK_ROWS = 2048  # fits the processor's cache: larger blocks are slower
_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # signature, flags, length of the header's extension
_TRAILER = b"\xff\xff"
_POSTGRES_EPOCH = 946_684_800_000_000  # 2000-01-01 UTC in microseconds since 1970-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """A text column in dictionary form: row ``i`` is ``values[codes[i]]``."""

    values: Sequence[str]
    codes: NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8Column:
    """A double precision column."""

    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestampColumn:
    """A timestamptz column, in microseconds since 1970-01-01 UTC."""

    microseconds: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallintColumn:
    """A smallint column."""

    values: NDArray[np.integer[Any]]


Column = TextColumn | Float8Column | TimestampColumn | SmallintColumn


def binary_copy_blocks(
    columns: Sequence[Column],
    *,
    rows: int,
    order: NDArray[np.intp] | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Iterator[bytes]:
    """Yield the stream for ``COPY … FROM STDIN (FORMAT binary)`` in blocks.

    A row of the stream is the number of its fields, then length and bytes of each field. Texts
    differ in length, so a block is laid out with every text at its widest and a mask then drops
    the padding.

    Args:
        columns: the columns, in the order the COPY statement names them.
        rows: how many rows each column has.
        order: positions of the rows in the order to send them; as they stand by default.
        block_rows: rows built at once, which bounds the memory beside the columns themselves.
    """
    yield _HEADER
    fields: list[_Field] = []
    width = 2
    for column in columns:
        fields.append(_Field(column, offset=width))
        width = fields[-1].end
    block = np.zeros((min(rows, block_rows), width), np.uint8)
    keep = np.ones(block.shape, np.bool_)
    block[:, :2] = _bytes_of(np.array([len(columns)], ">i2"))
    for field in fields:
        field.prepare(block, keep)
    for start in range(0, rows, block_rows):
        stop = min(start + block_rows, rows)
        chosen = slice(start, stop) if order is None else order[start:stop]
        size = stop - start
        for field in fields:
            field.fill(block[:size], keep[:size], chosen)
        yield block[:size][keep[:size]].tobytes()
    yield _TRAILER


class _Field:
    """Where one column lies in the widest row, and how its bytes get there."""

    def __init__(self, column: Column, *, offset: int) -> None:
        self._column = column
        self._constant = isinstance(column, TextColumn) and len(column.values) == 1
        if isinstance(column, TextColumn):
            texts = [text.encode() for text in column.values]
            lengths = np.array([len(text) for text in texts], ">i4")
            width = max(1, int(lengths.max(initial=0)))
            padded = np.array(texts, f"S{width}")
            self._table = np.hstack([_bytes_of(lengths), _bytes_of(padded)])
            self._keep = np.arange(-4, width) < lengths[:, None]
        else:
            width = 2 if isinstance(column, SmallintColumn) else 8
        self._place = slice(offset, offset + 4 + width)
        self.end = offset + 4 + width

    def prepare(self, block: NDArray[np.uint8], keep: NDArray[np.bool_]) -> None:
        """Write what is the same in all rows, once."""
        if self._constant:
            block[:, self._place] = self._table[0]
            keep[:, self._place] = self._keep[0]
        elif not isinstance(self._column, TextColumn):
            block[:, self._place.start + 3] = self.end - self._place.start - 4

    def fill(
        self, block: NDArray[np.uint8], keep: NDArray[np.bool_], chosen: slice | NDArray[np.intp]
    ) -> None:
        """Write the chosen rows' field into the block."""
        if self._constant:
            return
        match self._column:
            case TextColumn(codes=codes):
                block[:, self._place] = self._table[codes[chosen]]
                keep[:, self._place] = self._keep[codes[chosen]]
                return
            case Float8Column(values=values):
                payload = _bytes_of(values[chosen].astype(">f8"))
            case SmallintColumn(values=values):
                payload = _bytes_of(values[chosen].astype(">i2"))
            case TimestampColumn(microseconds=microseconds):
                payload = _bytes_of((microseconds[chosen] - _POSTGRES_EPOCH).astype(">i8"))
        block[:, self._place.start + 4 : self._place.stop] = payload


def _bytes_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's memory as one row of bytes for each element."""
    return values.view(np.uint8).reshape(len(values), values.itemsize)
