from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.copy_binary import (
    Float8Column,
    TextColumn,
    TimestampColumn,
    binary_copy_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

import pytest

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
FLOATS = st.floats(allow_nan=False)
INSTANTS = st.datetimes(timezones=st.just(UTC))
ROWS = st.lists(st.tuples(TEXTS, FLOATS, INSTANTS, st.sampled_from(["BTC/USDT", "ΞTH/€"])))


@pytest.fixture(scope="module")
def scratch(server) -> Iterator[psycopg.Connection]:
    with connect(server.url("postgres")) as conn:
        conn.execute(
            "CREATE TEMP TABLE scratch (id serial, a text, b float8, c timestamptz, d text)"
        )
        yield conn


def text_column(texts: list[str]) -> TextColumn:
    values = sorted(set(texts))
    return TextColumn(
        values=values, codes=np.array([values.index(text) for text in texts], np.int8)
    )


def stream(rows, *, order=None, block_rows: int = 1000) -> Iterator[bytes]:
    a, b, c, d = ([row[column] for row in rows] for column in range(4))
    microseconds = [(instant - EPOCH) // timedelta(microseconds=1) for instant in c]
    columns = [
        text_column(a),
        Float8Column(values=np.array(b, np.float64)),
        TimestampColumn(microseconds=np.array(microseconds, np.int64)),
        text_column(d),
    ]
    return binary_copy_blocks(columns, rows=len(rows), order=order, block_rows=block_rows)


def bits(rows) -> list[tuple[object, ...]]:
    return [(a, struct.pack("d", b), c, d) for a, b, c, d in rows]


def read_back(conn: psycopg.Connection, blocks: Iterator[bytes]) -> list[tuple[object, ...]]:
    conn.execute("TRUNCATE scratch RESTART IDENTITY")
    with (
        conn.cursor() as cursor,
        cursor.copy("COPY scratch (a, b, c, d) FROM STDIN (FORMAT binary)") as copy,
    ):
        for block in blocks:
            copy.write(block)
    return conn.execute("SELECT a, b, c, d FROM scratch ORDER BY id", binary=True).fetchall()


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, block_rows=st.integers(1, 8))
def test_postgres_reads_what_was_sent_bit_by_bit(scratch, rows, block_rows) -> None:
    """Any text, float and instant, in blocks of any size, empty texts and no rows included."""
    sent = stream(rows, block_rows=block_rows)
    assert bits(read_back(scratch, sent)) == bits(rows)


@settings(max_examples=20, deadline=None)
@given(data=st.data(), rows=ROWS)
def test_rows_are_sent_in_the_order_asked_for(scratch, data, rows) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    sent = stream(rows, order=np.array(order, np.intp), block_rows=3)
    assert bits(read_back(scratch, sent)) == bits([rows[position] for position in order])


def test_the_float_extremes_survive(scratch) -> None:
    """NaN is not equal to itself, so the property above leaves it out."""
    extremes = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308]
    rows = [("", value, EPOCH, "ΞTH/€") for value in extremes]
    assert bits(read_back(scratch, stream(rows))) == bits(rows)


def test_blocks_stay_small_whatever_the_number_of_rows() -> None:
    rows = [("x" * 40, 1.0, EPOCH, "BTC/USDT")] * 1_000
    assert max(map(len, stream(rows, block_rows=10))) < 10 * 100
