"""The ledger of a partition is replaced as a whole, and what did not change is left alone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.gaps import CAUSES, Gap
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.gap_reader import gaps, partition_states
from crypto_pipeline.database.gap_writer import Found, record_partitions
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START
from crypto_pipeline_tests.database.gaps import (
    DAY,
    DAY_MS,
    LATER,
    NOW,
    gap,
    moved,
    record,
    state_of,
)

if TYPE_CHECKING:
    import psycopg

ALWAYS = {"start": START - timedelta(days=9), "end": START + timedelta(days=9)}
VERSIONS = "SELECT xmin::text, ctid::text, * FROM candle_gaps ORDER BY symbol, timeframe, gap_start"


def ledger(conn: psycopg.Connection, exchange: str = "binance") -> list[Gap]:
    return gaps(conn, exchange=exchange, **ALWAYS)


def versions(conn: psycopg.Connection) -> dict[object, str]:
    """The row version of each gap, by its start."""
    return dict(conn.execute("SELECT gap_start, xmin::text FROM candle_gaps").fetchall())


def test_what_was_recorded_is_read_back(conn) -> None:
    """Every cause, more than one timeframe, to the millisecond."""
    written = [
        gap(number, number + 1, cause, first_seen=NOW - 1, last_checked=None)
        for number, cause in enumerate(CAUSES)
    ]
    hour = gap(60, 120, "rejected", timeframe="1h", evidence="high < low at 01:00 · ÄTH")
    record(conn, *written, hour, day=DAY)
    assert ledger(conn) == [hour, *written]


def test_recording_replaces_the_partition_and_nothing_else(conn) -> None:
    """Other days and exchanges, and the neighbouring midnight, stay."""
    yesterday, tomorrow = DAY - timedelta(days=1), DAY + timedelta(days=1)
    last, first = moved(gap(1439, 1440), yesterday), moved(gap(0, 1), tomorrow)
    record(conn, last, day=yesterday)
    record(conn, first, day=tomorrow)
    record(conn, gap(0, 5), exchange="kraken")
    record(conn, gap(0, 1), gap(7, 9, "unknown"), gap(1439, 1440))
    record(conn, gap(7, 8, "unknown"), gap(20, 30))
    assert ledger(conn) == [last, gap(7, 8, "unknown"), gap(20, 30), first]
    assert ledger(conn, "kraken") == [gap(0, 5)]
    record(conn)
    assert ledger(conn) == [last, first]


def test_equal_gaps_keep_their_row_version(conn) -> None:
    """The minute schedule records its day every minute: a thousand quiet minutes must cost nothing."""
    quiet = [gap(number, number + 1) for number in range(0, 1000, 2)]
    record(conn, *quiet)
    before = conn.execute(VERSIONS).fetchall()
    record(conn, *quiet, checked_at=LATER)
    assert conn.execute(VERSIONS).fetchall() == before
    stored = versions(conn)
    other = replace(quiet[3], evidence="another")
    record(conn, *quiet[:3], other, *quiet[5:], gap(1001, 1002), checked_at=LATER)
    now = versions(conn)
    touched = {start for start in now if now[start] != stored.get(start)}
    assert touched == {START + timedelta(minutes=minute) for minute in (6, 1001)}
    assert len(now) == 500


def test_a_gap_keeps_when_it_was_first_seen(conn) -> None:
    """Whatever its cause becomes, and whether it shrinks, grows or is torn in two."""
    hour = 60 * MINUTE_MS
    record(
        conn,
        gap(10, 20, "unknown", first_seen=NOW - 3 * hour),
        gap(20, 30, "fetch_failed", first_seen=NOW - 5 * hour),
        gap(40, 50, "unknown", first_seen=NOW - 9 * hour),
        gap(10, 20, "unknown", symbol="ETH/USDT", first_seen=NOW - 9 * hour),
    )
    record(
        conn,
        gap(5, 10),  # touches, and does not overlap
        gap(10, 12),
        gap(15, 25),
        gap(25, 26, first_seen=NOW - 7 * hour),
        gap(30, 40),
        gap(10, 20, timeframe="5m"),
    )
    assert {(one.timeframe, one.start): NOW - one.first_seen for one in ledger(conn)} == {
        ("1m", DAY_MS + minute * MINUTE_MS): hours * hour
        for minute, hours in ((5, 0), (10, 3), (15, 5), (25, 7), (30, 0))
    } | {("5m", DAY_MS + 10 * MINUTE_MS): 0}


BOUNDS = st.lists(st.integers(0, 60), min_size=2, max_size=12, unique=True).map(sorted)
LEDGERS = st.lists(
    st.tuples(BOUNDS, st.lists(st.integers(0, 9), min_size=12, max_size=12)), min_size=1, max_size=4
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ledgers=LEDGERS)
def test_first_seen_is_the_earliest_of_all_it_overlaps(conn, ledgers) -> None:
    """Against the definition, gap by gap, over any sequence of ledgers."""
    empty(conn)
    model: list[Gap] = []
    for bounds, seen in ledgers:
        found = [
            gap(first, last, first_seen=NOW - ago)
            for first, last, ago in zip(bounds[::2], bounds[1::2], seen, strict=False)
        ]
        record(conn, *found)
        model = [
            replace(
                new,
                first_seen=min(
                    [new.first_seen]
                    + [old.first_seen for old in model if old.start < new.end > new.start < old.end]
                ),
            )
            for new in found
        ]
        assert ledger(conn) == model


def test_long_or_odd_evidence_is_stored_as_far_as_it_can_be(conn) -> None:
    """An exchange's error message is whatever it is: pages of HTML, or bytes that are no text."""
    record(conn, gap(0, 1, evidence="x" * 5_000), gap(1, 2, evidence="a\0b\ud800"))
    long, odd = ledger(conn)
    assert (len(long.evidence), long.evidence[-2:]) == (1_024, "x…")
    assert odd.evidence == "a\\u0000b\\ud800"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([gap(-1, 1)], "23:59:00.* is not a part of 2024-03-09"),
        ([gap(1439, 1441)], "is not a part of"),
        ([gap(1440, 1441)], "is not a part of"),
        ([gap(5, 5)], "is not a part of"),
        ([gap(5, 4)], "is not a part of"),
        ([gap(0, 5), gap(4, 6)], "00:04:00.* begins before the end of the one before it"),
        ([gap(0, 5), gap(0, 5)], "begins before the end"),
        ([gap(8, 9), gap(0, 5)], "begins before the end"),
        ([gap(0, 5), gap(0, 5, symbol="A/B"), gap(4, 6)], "begins before the end"),
        ([gap(0, 5, timeframe="4h")], "not one of whole candles"),
        ([gap(0, 5, start=DAY_MS + 1)], "not one of whole candles"),
        ([gap(0, 5, timeframe="1w")], "'1w' is not a timeframe"),
        ([gap(0, 5, "lunch", next_retry=None)], "candle_gaps_"),
        ([gap(0, 5, "unknown", next_retry=None)], "candle_gaps_retry_unless_proven"),
        ([gap(0, 5, next_retry=LATER)], "candle_gaps_retry_unless_proven"),
    ],
)
def test_what_is_not_the_ledger_of_a_partition_is_refused_whole(conn, found, words) -> None:
    """Each is a mistake of the program: neither the good gaps beside it nor the state are stored."""
    good = gap(0, 5, symbol="AAA/USDT")
    record(conn, gap(3, 4))
    before = ledger(conn), partition_states(conn, exchange="binance", since=DAY)
    state = state_of([], checked_at=LATER)
    with pytest.raises(DatabaseError, match=words) as refused:
        record_partitions(conn, exchange="binance", found={DAY: Found([good, *found], state)})
    assert not refused.value.rerun_helps
    assert (ledger(conn), partition_states(conn, exchange="binance", since=DAY)) == before


def test_several_partitions_at_once_are_recorded_as_one_by_one(conn) -> None:
    """One between them that is not among them, one looked at later meanwhile, and their last answer."""
    days = [DAY + timedelta(days=number) for number in range(4)]
    outcomes = []
    for together in (False, True):
        empty(conn)
        for day in days:
            record(conn, moved(gap(0, 5), day), moved(gap(9, 10), day), day=day)
        record(conn, moved(gap(3, 7), days[3]), day=days[3], checked_at=LATER + 1)
        looks = {
            day: Found(
                [moved(gap(3, 6), day), moved(gap(3, 6, symbol="A/B"), day)],
                state_of([], checked_at=LATER, answered_at=NOW + number),
            )
            for number, day in enumerate(days)
            if number != 1
        }
        for found in [looks] if together else [{day: look} for day, look in looks.items()]:
            record_partitions(conn, exchange="binance", found=found, live=True)
        outcomes.append(
            (
                ledger(conn),
                partition_states(conn, exchange="binance", since=DAY),
                conn.execute("SELECT exchange, answered_at FROM exchange_states").fetchall(),
            )
        )
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) == 4 + 2 + 1


def test_an_older_look_replaces_nothing(conn) -> None:
    """A slow run that began before a repair must not bring the gap back; live neither."""
    record(conn, gap(0, 2), checked_at=LATER)
    before = conn.execute(VERSIONS).fetchall()
    record(conn, gap(0, 500, "unknown"), checked_at=LATER - 1, live=True)
    assert conn.execute(VERSIONS).fetchall() == before
    assert partition_states(conn, exchange="binance", since=DAY)[DAY].checked_at == LATER
    record(conn, checked_at=LATER)  # of the same time: the one written last
    assert ledger(conn) == []


def test_once_live_a_partition_stays_live(conn) -> None:
    """A backfill of the same day must not take away what the schedule said."""
    for live, expected in ((False, False), (True, True), (False, True)):
        record(conn, live=live)
        assert partition_states(conn, exchange="binance", since=DAY)[DAY].live is expected


def test_a_state_that_did_not_change_keeps_its_row_version(conn) -> None:
    """Also when it is repeated by a run that is not live."""
    record(conn, gap(0, 2), live=True)
    version = "SELECT xmin::text, ctid::text FROM candle_partitions"
    before = conn.execute(version).fetchall()
    record(conn, gap(0, 2))
    assert conn.execute(version).fetchall() == before
    record(conn, gap(0, 2), checked_at=LATER)
    assert conn.execute(version).fetchall() != before


def test_recording_takes_turns(conn, database_url) -> None:
    """Two runs that replace the same ledger at once would mix their gaps."""
    waiting = "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
    with connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            record(conn, gap(0, 5, "unknown"), checked_at=LATER)
            second = pool.submit(record, other, gap(1, 9), checked_at=LATER + 1)
            deadline = time.monotonic() + 10
            while conn.execute(waiting, [conn.info.dbname]).fetchone() is None:
                assert time.monotonic() < deadline, "the second writer does not wait"
        second.result()
    assert ledger(conn) == [gap(1, 9)]
