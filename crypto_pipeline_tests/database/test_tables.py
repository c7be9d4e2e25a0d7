"""No program can store what validation would refuse: the constraints repeat its rules."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import errors, sql

from crypto_pipeline.core.gaps import CAUSES, PROVEN
from crypto_pipeline.database.tables import EVIDENCE_LIMIT, SOURCES
from crypto_pipeline_tests.database.frames import START

if TYPE_CHECKING:
    from collections.abc import Mapping

GOOD = {"open": 2.0, "high": 3.0, "low": 1.0, "close": 2.5, "volume": 0.0}
INF, NAN = math.inf, math.nan


def insert(conn: psycopg.Connection, table: str, row: Mapping[str, object]) -> None:
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(map(sql.Placeholder, row)),
    )
    conn.execute(statement, row)


def row_of(table: str, **values: object) -> dict[str, object]:
    row = {
        "exchange": "binance",
        "symbol": "BTC/USDT",
        "timeframe": "1m",
        "open_time": START,
        "fetched_at": START,
        "run_id": "run",
        **GOOD,
        **values,
    }
    return {**row, "source": "ohlcv"} if table == "candles" and "source" not in row else row


BAD = [
    *[
        (f"price_{rule}", {price: value})
        for price in ("open", "high", "low", "close")
        for rule, value in (("finite", NAN), ("finite", INF), ("positive", -INF), ("positive", 0.0))
    ],
    ("price_positive", {"low": -1.0}),
    ("price_positive", {"low": -0.0}),
    ("volume_finite", {"volume": NAN}),
    ("volume_finite", {"volume": INF}),
    ("volume_not_negative", {"volume": -5e-324}),
    ("volume_not_negative", {"volume": -INF}),
    ("high_not_below_low", {"high": 1.0, "low": 1.5, "open": 1.2, "close": 1.2}),
    ("open_within_range", {"open": 3.5}),
    ("open_within_range", {"open": 0.5}),
    ("close_within_range", {"close": 3.0000000000000004}),
    ("close_within_range", {"close": 0.9999999999999999}),
]


@pytest.mark.parametrize("table", ["candles", "live_candles"])
def test_a_row_that_breaks_a_rule_is_refused(conn, table) -> None:
    """In PostgreSQL NaN > 0 and NaN > Infinity: CHECK (open > 0) alone stored NaN prices."""
    for rule, values in BAD:
        with pytest.raises(errors.CheckViolation) as refused:
            insert(conn, table, row_of(table, **values))
        names = {f"{table}_{rule}"}
        if rule.startswith(("price", "high")):  # breaks others too; the first by name is told
            others = ("open_within_range", "close_within_range", "high_not_below_low")
            names |= {f"{table}_{other}" for other in others}
        assert refused.value.diag.constraint_name in names, values
    assert conn.execute(
        sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
    ).fetchone() == (0,)


@pytest.mark.parametrize(
    "values",
    [
        {},
        dict.fromkeys(GOOD, 5e-324),
        dict.fromkeys(GOOD, 1.7976931348623157e308),
        {"open": 1.0, "close": 3.0, "volume": -0.0},
    ],
)
def test_extreme_rows_that_keep_the_rules_are_stored(conn, values) -> None:
    for table in ("candles", "live_candles"):
        insert(conn, table, row_of(table, **values))


def test_only_known_sources_are_stored(conn) -> None:
    for minute, source in enumerate(SOURCES):
        insert(
            conn,
            "candles",
            row_of("candles", source=source, open_time=START.replace(minute=minute)),
        )
    with pytest.raises(errors.CheckViolation, match="candles_source_known"):
        insert(conn, "candles", row_of("candles", source="guess"))


def test_no_column_of_a_candle_can_be_empty(conn) -> None:
    for table in ("candles", "live_candles"):
        for column in row_of(table):
            with pytest.raises(errors.NotNullViolation):
                insert(conn, table, row_of(table, **{column: None}))


def test_names_are_ordered_as_python_orders_strings(conn) -> None:
    """A linguistic collation would order "1h" before "1M" here and after it there."""
    names = ["BTC/USDT", "btc/usdt", "1INCH/USDT", "ÄTH/EUR", "ETH/USDT", "ΞTH"]
    for name in names:
        insert(conn, "candles", row_of("candles", symbol=name))
    rows = conn.execute("SELECT symbol FROM candles ORDER BY symbol").fetchall()
    assert [row[0] for row in rows] == sorted(names)


# --- the ledger ----------------------------------------------------------------------------------

DAY = timedelta(days=1)
GAP = {
    "exchange": "binance",
    "symbol": "BTC/USDT",
    "timeframe": "1m",
    "gap_start": START,
    "gap_end": START + DAY,
    "cause": "no_trades",
    "evidence": "x" * EVIDENCE_LIMIT,
    "first_seen": START,
}
PARTITION = {
    "exchange": "binance",
    "partition_date": START.date(),
    "complete": True,
    "expected": 10,
    "stored": 7,
    "missing": 3,
    "unproven": 0,
    "live": False,
    "checked_at": START,
}


def test_every_cause_has_a_retry_or_is_proven(conn) -> None:
    """A gap nobody asks for again and nobody explained would be lost."""
    for minute, cause in enumerate(CAUSES):
        retry = {True: None, False: START}
        row = {**GAP, "cause": cause, "gap_start": START + timedelta(minutes=minute)}
        with pytest.raises(errors.CheckViolation, match="candle_gaps_retry_unless_proven"):
            insert(conn, "candle_gaps", {**row, "next_retry": retry[cause not in PROVEN]})
        insert(conn, "candle_gaps", {**row, "next_retry": retry[cause in PROVEN]})


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_a_gap_that_is_none_is_refused(conn, zone) -> None:
    """A UTC day at most, whatever the session's time zone takes for one."""
    conn.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    second = timedelta(seconds=1)
    bad = [
        ("not_empty", {"gap_end": START}),
        ("not_empty", {"gap_end": START - second}),
        ("within_a_day", {"gap_start": START - second}),
        ("within_a_day", {"gap_end": START + DAY + second}),
        ("within_a_day", {"gap_start": START + DAY / 2, "gap_end": START + DAY + second}),
        ("cause_known", {"cause": "lunch", "next_retry": START}),
        ("evidence_bound", {"evidence": "x" * (EVIDENCE_LIMIT + 1)}),
    ]
    for rule, values in bad:
        with pytest.raises(errors.CheckViolation, match=f"candle_gaps_{rule}"):
            insert(conn, "candle_gaps", {**GAP, **values})
    insert(conn, "candle_gaps", GAP)
    with pytest.raises(errors.UniqueViolation):
        insert(conn, "candle_gaps", GAP)


def test_a_partition_is_complete_by_its_counts_only(conn) -> None:
    """Green must not be a matter of who wrote the row."""
    bad = [
        ("counts_not_negative", {"stored": -1, "expected": 2}),
        ("counts_not_negative", {"complete": False, "unproven": -1}),
        ("unproven_are_missing", {"complete": False, "unproven": 4}),
        ("complete_by_counts", {"complete": False}),
        ("complete_by_counts", {"expected": 11}),
        ("complete_by_counts", {"unproven": 1}),
    ]
    for rule, values in bad:
        with pytest.raises(errors.CheckViolation, match=f"candle_partitions_{rule}"):
            insert(conn, "candle_partitions", {**PARTITION, **values})
    insert(conn, "candle_partitions", PARTITION)


def test_no_column_of_the_ledger_can_be_empty(conn) -> None:
    for table, row in (("candle_gaps", GAP), ("candle_partitions", PARTITION)):
        for column in row:
            with pytest.raises(errors.NotNullViolation):
                insert(conn, table, {**row, column: None})
