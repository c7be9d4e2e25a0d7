"""Writers that meet, and writers that die."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest

from crypto_pipeline.database.candle_reader import count_candles
from crypto_pipeline.database.candle_writer import (
    WriteResult,
    replace_live_candles,
    upsert_candles,
)
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline_tests.database.frames import START, WINDOW, candles, changed

WRITERS = 8
SYMBOLS = [f"S{number}/USDT" for number in range(6)]


def in_parallel(url, work) -> list:
    """``work(connection, number)`` in eight threads, each with its own connection, at once."""
    barrier = Barrier(WRITERS)

    def run(number: int):
        with connect(url) as conn:
            barrier.wait()
            return work(conn, number)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(run, range(WRITERS)))


def test_eight_first_writers_of_a_partition_leave_it_whole(conn, database_url) -> None:
    """Each finds the window empty unless they take turns; MERGE raised UniqueViolation here."""
    frames = [
        candles(SYMBOLS, minutes=200, seed=number, run_id=f"run{number}").sample(
            frac=1, random_state=number
        )
        for number in range(WRITERS)
    ]
    results = in_parallel(
        database_url, lambda own, number: upsert_candles(own, frames[number], **WINDOW)
    )
    total = len(frames[0])
    assert sorted((r.inserted, r.changed) for r in results) == [(0, total)] * 7 + [(total, 0)]
    rows = conn.execute("SELECT run_id, count(*) FROM candles GROUP BY run_id").fetchall()
    assert len(rows) == 1, "rows of two writers are mixed"
    assert rows[0][1] == total


def test_writers_of_overlapping_rows_lose_nothing(conn, database_url) -> None:
    """Ticks and a backfill of the same day, again and again, in unlike orders."""
    day = candles(SYMBOLS, minutes=220)
    minute = (day["open_time"] - START) // timedelta(minutes=1)

    def work(own, number: int) -> WriteResult:
        inserted = 0
        for step in range(10):
            first = 20 * ((step * 3 + number) % 10)
            part = day[minute.between(first, first + 39)]
            result = upsert_candles(own, part.sample(frac=1, random_state=number), **WINDOW)
            inserted += result.inserted
            assert result.changed == 0
        return WriteResult(inserted=inserted)

    results = in_parallel(database_url, work)
    counts = count_candles(conn, **WINDOW)
    assert counts["count"].tolist() == [220] * len(SYMBOLS)
    assert sum(result.inserted for result in results) == 220 * len(SYMBOLS)


def test_writers_of_many_partitions_and_new_chunks_do_not_deadlock(conn, database_url) -> None:
    """Ordering by key alone left up to 12 deadlocks in 240 writes: chunks are locked too."""
    days = [START + timedelta(days=40 * number) for number in range(4)]

    def work(own, number: int) -> int:
        written = 0
        for step in range(12):
            day = days[(number + step * (1 if number % 2 else 3)) % len(days)]
            frame = candles(SYMBOLS, minutes=20, seed=number)
            frame["open_time"] += day - START
            window = {**WINDOW, "start": day, "end": day + timedelta(days=1)}
            result = upsert_candles(own, frame.iloc[:: -1 if step % 2 else 1], **window)
            written += result.inserted
        return written

    assert sum(in_parallel(database_url, work)) == len(days) * len(SYMBOLS) * 20


MANY = [f"S{number}/USDT" for number in range(300)]


def test_writers_of_forming_candles_do_not_deadlock(conn, database_url) -> None:
    """One statement locks row by row, in the order of the frame."""

    def work(own, number: int) -> None:
        for step in range(4):
            frame = candles(MANY, minutes=1, first=step, seed=number)
            frame = frame.sample(frac=1, random_state=number)
            replace_live_candles(own, frame, exchange="binance")

    in_parallel(database_url, work)
    minutes = conn.execute(
        "SELECT extract(minute FROM open_time), count(*) FROM live_candles GROUP BY 1"
    )
    assert minutes.fetchall() == [(3, len(MANY))]


def test_writers_of_refused_rows_take_turns(conn, database_url) -> None:
    """Two that insert the same rows in unlike orders would each wait for the other's row."""
    frame = candles(SYMBOLS, minutes=1).assign(rule="off_grid", message="", received="[1]")
    partition = {"exchange": "binance", "partition_date": START.date()}
    waiting = "SELECT FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
    with connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with conn.transaction():
            assert record_rejected(conn, frame, **partition) == len(frame)
            second = pool.submit(record_rejected, other, frame[::-1], **partition)
            deadline = time.monotonic() + 10
            while conn.execute(waiting, [conn.info.dbname]).fetchone() is None:
                assert time.monotonic() < deadline, "the second writer does not wait"
        assert second.result() == 0


WRITER = """
import sys
from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline.database.connection import connect
from crypto_pipeline_tests.database.frames import WINDOW, candles
symbols = [f"S{number}/USDT" for number in range(200)]
frame = candles(symbols, minutes=1440, seed=9, run_id="killed")
with connect(sys.argv[1], application_name="crypto_pipeline victim") as conn:
    print("ready", flush=True)
    upsert_candles(conn, frame, **WINDOW)
    print("written", flush=True)
"""

COPYING = (
    "SELECT FROM pg_stat_activity WHERE application_name = 'crypto_pipeline victim'"
    " AND state = 'active' AND query LIKE 'COPY%' AND clock_timestamp() - query_start > '100ms'"
)


@pytest.mark.parametrize("stored", [0, 30], ids=["by COPY", "by merge"])
def test_a_writer_killed_in_mid_copy_leaves_the_old_state(conn, database_url, stored) -> None:
    """And frees its partition at once: a restarted run must not wait for a dead one."""
    old = candles(SYMBOLS, minutes=stored)
    upsert_candles(conn, old, **WINDOW)
    before = conn.execute("SELECT * FROM candles ORDER BY 1, 2, 3, 4").fetchall()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 30
        while conn.execute(COPYING).fetchone() is None:
            assert time.monotonic() < deadline, "never seen copying"
        victim.kill()
        assert victim.stdout.read() == "", "it was not in the middle"
    assert conn.execute("SELECT * FROM candles ORDER BY 1, 2, 3, 4").fetchall() == before
    began = time.monotonic()
    rerun = changed(candles(SYMBOLS, minutes=60), [0])
    assert upsert_candles(conn, rerun, **WINDOW).inserted >= 60 - stored
    assert time.monotonic() - began < 5
