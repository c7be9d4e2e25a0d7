"""Frames come back from Parquet as they were, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.candles import (
    CANDLE_DTYPES,
    OBSERVATION_DTYPES,
    TIME_DTYPE,
    VALUES,
    as_candles,
    empty_observations,
)
from crypto_pipeline.errors import LakeError
from crypto_pipeline.lake.parquet import from_parquet, to_parquet

NOTES = {"crypto_pipeline.coverage": '[{"symbol":"₿/USDT","settled":[[0,60000]]}]', "empty": ""}


def observations(rows: int = 4) -> pd.DataFrame:
    """Every dtype with its extremes: nulls, unicode, no time, infinities, negative zero."""
    times = np.array([1_710_506_040_000, 0, 253_402_300_799_999, np.iinfo(np.int64).min] * rows)
    values = [1e-308, -0.0, np.nan, 123_456_789.12345679, np.inf, 0.1 + 0.2, 5e-324, 1.0]

    def names(*texts: str | None) -> pd.Categorical:
        return pd.Categorical((texts * rows)[:rows])

    def floats(shift: int) -> np.ndarray:
        return np.array([values[(shift + n) % len(values)] for n in range(rows)])

    return pd.DataFrame(
        {
            "symbol": names("BTC/USDT", "Ünïcødé/₿", None, "ETH/USDT"),
            "timeframe": names("1m", "1d"),
            "open_time": pd.DatetimeIndex(times[:rows].view("datetime64[ms]")).tz_localize("UTC"),
            **{name: floats(shift) for shift, name in enumerate(VALUES)},
            "final": np.arange(rows) % 2 == 0,
            "fetched_at": pd.DatetimeIndex(times[:rows].view("datetime64[ms]")).tz_localize("UTC"),
            "run_id": names("a" * 36, None),
            "source": names("ohlcv"),
            "clock_offset_ms": np.array([-(2**63) + 1, 0, 2**63 - 1, -5] * rows)[:rows],
            "received": pd.array(([None, '["\\ud800", "\n\0€"]', "", "x" * 2_000] * rows)[:rows],
                                 dtype="str"),
        }
    )  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 17])
def test_every_dtype_and_extreme_comes_back(rows: int) -> None:
    """Values to the bit, nulls as nulls, text as text; the dtypes are the table's, not the rows'."""
    frame = observations(rows)
    content = to_parquet(frame, OBSERVATION_DTYPES, NOTES)
    read, notes = from_parquet(content, OBSERVATION_DTYPES, where="x")
    pd.testing.assert_frame_equal(read, frame, check_categorical=False, check_exact=True)
    assert {name: str(dtype) for name, dtype in read.dtypes.items()} == {
        name: str(dtype) for name, dtype in OBSERVATION_DTYPES.items()
    }
    assert np.signbit(read["open"]).tolist() == np.signbit(frame["open"]).tolist()
    assert notes == NOTES


def test_an_empty_frame_keeps_its_dtypes() -> None:
    """A day without rows is a file like any other: the schema is never guessed from rows."""
    content = to_parquet(empty_observations(), OBSERVATION_DTYPES, {})
    read, notes = from_parquet(content, OBSERVATION_DTYPES, where="x")
    pd.testing.assert_frame_equal(read, empty_observations())
    assert notes == {}
    assert pq.read_schema(pa.BufferReader(content)).field("open").type == pa.float64()


def test_a_column_of_nulls_only_keeps_its_type() -> None:
    """pandas makes it object, Arrow null; the next reader could not concatenate it."""
    frame = observations(2).assign(received=pd.array([None, None], dtype="str"))
    content = to_parquet(frame, OBSERVATION_DTYPES, {})
    assert pq.read_schema(pa.BufferReader(content)).field("received").type == pa.string()
    assert from_parquet(content, OBSERVATION_DTYPES, where="x")[0]["received"].isna().all()


@settings(deadline=None, database=None, derandomize=True, max_examples=60)
@given(
    notes=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
        max_size=4,
    )
)
def test_notes_of_any_text_come_back(notes: dict[str, str]) -> None:
    """Coverage is a note: error texts of exchanges stand in it."""
    content = to_parquet(empty_observations(), OBSERVATION_DTYPES, notes)
    assert from_parquet(content, OBSERVATION_DTYPES, where="x")[1] == notes


def test_equal_frames_make_equal_files() -> None:
    """A rerun that changes nothing changes no byte."""
    first = to_parquet(observations(), OBSERVATION_DTYPES, NOTES)
    assert to_parquet(observations(), OBSERVATION_DTYPES, NOTES) == first


# --- damage --------------------------------------------------------------------------------------


def _assert_refused(content: bytes) -> str:
    with pytest.raises(LakeError) as caught:
        from_parquet(content, OBSERVATION_DTYPES, where="/lake/raw/x.parquet")
    text = str(caught.value)
    assert "/lake/raw/x.parquet" in text
    assert "move it away" in text
    return text


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 100, b"<html>", b"PAR1" + b"x" * 50 + b"PAR1"]
)
def test_what_is_no_parquet_is_refused(content: bytes) -> None:
    """An upload that broke, an error page of a store."""
    _assert_refused(content)


def test_a_cut_file_is_refused_wherever_it_was_cut() -> None:
    """A disk that was full, in a store that does not replace as a whole."""
    content = to_parquet(observations(), OBSERVATION_DTYPES, NOTES)
    for length in range(0, len(content), 97):
        _assert_refused(content[:length])


def test_a_file_of_other_columns_or_types_is_refused() -> None:
    """Somebody's own file in our folder: a null in ``final`` would have become True."""
    frame = observations()
    for other in (
        frame.drop(columns=["received"]),
        frame.assign(open=frame["open"].astype("str")),
        frame.assign(final=pd.array([True, None, False, True], dtype="boolean").astype(object)),
        frame.assign(clock_offset_ms=1.5),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pandas(other, preserve_index=False), sink)
        _assert_refused(sink.getvalue().to_pybytes())


def _flipped(content: bytes, *, step: int) -> Iterator[tuple[int, bytes]]:
    for position in range(0, len(content), step):
        for mask in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= mask
            yield position, bytes(damaged)


def test_a_flipped_bit_never_becomes_another_candle() -> None:
    """Disks do that. Every bit of the pages and notes is guarded; the rest must fail or not matter."""
    frame = observations(3)
    content = to_parquet(frame, OBSERVATION_DTYPES, NOTES)
    refused = 0
    for position, damaged in _flipped(content, step=13):
        try:
            read, notes = from_parquet(damaged, OBSERVATION_DTYPES, where="x")
        except LakeError:
            refused += 1
            continue
        same = read.equals(frame.astype(dict(OBSERVATION_DTYPES))) and notes == NOTES
        assert same, f"byte {position} of {len(content)}: {read.compare(frame)} {notes}"
    assert refused > 100


def test_candles_are_a_part_of_observations() -> None:
    """The validated zone's files are the raw zone's without what came over the wire."""
    frame = as_candles(observations().assign(open_time=pd.Timestamp(0, tz="UTC")))
    content = to_parquet(frame, CANDLE_DTYPES, {})
    read, _ = from_parquet(content, CANDLE_DTYPES, where="x")
    assert list(read) == list(CANDLE_DTYPES)
    assert read["open_time"].dtype == TIME_DTYPE
