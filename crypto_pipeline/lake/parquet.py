"""Frames to Parquet bytes and back, with every dtype and the file's own notes intact."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crypto_pipeline.errors import LakeError

_ARROW: dict[object, pa.DataType] = {
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
    schema = pa.schema(
        [(name, _ARROW[dtype]) for name, dtype in dtypes.items()], metadata=dict(notes)
    )
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(dict(notes)), sink, compression="zstd", store_schema=True
    )
    return sink.getvalue().to_pybytes()


def from_parquet(
    content: bytes, dtypes: Mapping[str, object], *, where: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The frame and the notes of a file written by :func:`to_parquet`.

    Raises:
        LakeError: not such a file, or one of other columns.
    """
    try:
        table = pq.read_table(pa.BufferReader(content), partitioning=None)
        notes = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        frame = table.select(list(dtypes)).to_pandas()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise LakeError(
            f"{where} is not a file of this lake: {error}.",
            hint="move it away; the partition can be fetched (raw) or rebuilt (validated) again.",
        ) from error
    return frame.astype(dict(dtypes)), notes
