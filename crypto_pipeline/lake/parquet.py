"""Frames to Parquet bytes and back, with every dtype and the file's own notes intact.

Pages and notes carry checksums: a disk that flips a bit must not become a candle, nor a claim that
one was asked for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crypto_pipeline.errors import LakeError

_CHECKSUM: Final = "crypto_pipeline.crc32"
_ARROW: Final[dict[object, pa.DataType]] = {
    "category": pa.dictionary(pa.int32(), pa.string()),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "str": pa.string(),
    pd.DatetimeTZDtype("ms", "UTC"): pa.timestamp("ms", "UTC"),
}


def to_parquet(
    frame: pd.DataFrame, dtypes: Mapping[str, object], notes: Mapping[str, str]
) -> bytes:
    """The frame as one Parquet file whose schema is ``dtypes``, never what the rows suggest."""
    schema = pa.schema([(name, _ARROW[dtype]) for name, dtype in dtypes.items()])
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False, nthreads=1)
    sink = pa.BufferOutputStream()
    # Numbers byte by byte beside each other: a quarter smaller than the default, in half the time.
    pq.write_table(
        table.replace_schema_metadata({**notes, _CHECKSUM: _checksum(notes)}),
        sink,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name, dtype in dtypes.items() if dtype in ("category", "str")],
        use_byte_stream_split=[name for name, dtype in dtypes.items() if dtype == "float64"],
        store_schema=True,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def from_parquet(
    content: bytes, dtypes: Mapping[str, object], *, where: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame and the notes of a file written by :func:`to_parquet`, or some of its columns.

    Raises:
        LakeError: not such a file, one of other columns, or one that was damaged since.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        table = file.read(
            list(dtypes), use_threads=False
        )  # for a partition threads cost more than they save
        notes = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        _check(table, notes, dtypes)
        frame = table.select(list(dtypes)).to_pandas(use_threads=False)
        for name in [name for name, dtype in dtypes.items() if dtype == "category"]:
            # without values categories come back as objects, which no text can be united with
            categories = pd.Index(frame[name].cat.categories, dtype="str")
            frame[name] = frame[name].cat.rename_categories(categories)
        other = {name: dtype for name, dtype in dtypes.items() if frame[name].dtype != dtype}
        frame = frame.astype(other) if other else frame
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        raise LakeError(
            f"{where} is not a file of this lake, or it is damaged: {error}.",
            hint="move it away; the partition can be fetched (raw) or rebuilt (validated) again.",
        ) from error
    del notes[_CHECKSUM]
    return frame, notes


def read_notes(content: bytes, *, where: str) -> tuple[int, dict[str, str]]:
    """The number of rows and the notes, from the file's footer: no column is decoded.

    Raises:
        LakeError: not a file of this lake, or its notes were damaged since.
    """
    try:
        footer = pq.read_metadata(pa.BufferReader(content))
        schema = footer.schema.to_arrow_schema()
        notes = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
        _check_notes(notes)
    except (pa.ArrowException, OSError, LookupError, ValueError) as error:
        raise LakeError(
            f"{where} is not a file of this lake, or it is damaged: {error}.",
            hint="move it away; the partition can be fetched again.",
        ) from error
    del notes[_CHECKSUM]
    return footer.num_rows, notes


def _check_notes(notes: Mapping[str, str]) -> None:
    plain = {name: text for name, text in notes.items() if name != _CHECKSUM}
    if notes[_CHECKSUM] != _checksum(plain):
        raise ValueError("its notes do not have the checksum they were written with")


def _check(table: pa.Table, notes: Mapping[str, str], dtypes: Mapping[str, object]) -> None:
    """ValueError or KeyError for a table that :func:`to_parquet` did not write like this."""
    _check_notes(notes)
    for name, dtype in dtypes.items():
        if table.schema.field(name).type != _ARROW[dtype]:
            raise ValueError(f"its column {name} is {table.schema.field(name).type}")
        if dtype in ("bool", "int64") and table[name].null_count:
            raise ValueError(f"its column {name} has nulls")


def _checksum(notes: Mapping[str, str]) -> str:
    return str(zlib.crc32(json.dumps(sorted(notes.items())).encode()))
