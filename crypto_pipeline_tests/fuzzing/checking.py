"""What came of a batch of answers, and how it is looked at."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import psycopg

from crypto_pipeline.core.candles import VALUES
from crypto_pipeline.core.timeframes import DAY_MS, utc
from crypto_pipeline_tests.fuzzing.oracle import Asked, Row, broken


class Broken(AssertionError):
    """A promise that did not hold; the message says which, and with what answers it comes again."""


@dataclass
class Tally:
    """What came of the answers."""

    answers: int = 0
    rows: int = 0
    stored: int = 0
    forming: int = 0
    refused: int = 0
    unasked: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Another batch."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def conforms(row: Row, asked: Asked) -> bool:
    assert row.time is not None
    return broken(row, asked.length, asked.now, row.time // DAY_MS * DAY_MS) is None


def slots(intervals: Any, length: int) -> set[int]:
    return {slot for start, end in intervals for slot in range(start, end, length)}


def candles_of(conn: psycopg.Connection, table: str, exchange: str, start: int) -> dict[Any, Any]:
    names = ", ".join(VALUES)
    query = (
        f"SELECT symbol, timeframe, (extract(epoch FROM open_time) * 1000)::bigint, {names},"
        f" (extract(epoch FROM fetched_at) * 1000)::bigint FROM {table}"
        " WHERE exchange = %s AND open_time >= %s AND open_time < %s"
    )
    with conn.cursor(binary=True) as cursor:
        cursor.execute(query, [exchange, utc(start), utc(start + DAY_MS)])
        return {row[:3]: (row[3:8], row[8]) for row in cursor.fetchall()}


def difference(table: str, stored: dict[Any, Any], expected: dict[Any, Any]) -> str | None:
    """What differs first, bit by bit; None if nothing does."""

    def bits(entries: dict[Any, Any]) -> dict[Any, Any]:
        return {key: (struct.pack(">5d", *values), at) for key, (values, at) in entries.items()}

    mine, theirs = bits(stored), bits(expected)
    if mine == theirs:
        return None
    key = first_of(mine.items() ^ theirs.items())[0]
    return f"{table} holds {stored.get(key)} for {key}, not {expected.get(key)}"


def recorded(conn: psycopg.Connection, exchange: str, day: date) -> dict[Any, int]:
    """How often ``rejected_candles`` holds each refusal."""
    query = (
        "SELECT symbol, timeframe, rule, received, count(*) FROM rejected_candles"
        " WHERE exchange = %s AND partition_date = %s GROUP BY 1, 2, 3, 4"
    )
    return {row[:4]: row[4] for row in conn.execute(query, [exchange, day]).fetchall()}


def first_of(found: Any) -> Any:
    return min(found, key=repr, default=None)
