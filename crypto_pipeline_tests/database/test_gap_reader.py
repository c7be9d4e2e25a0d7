"""What the ledger answers, and the runs of candles it is made from."""

from __future__ import annotations

import time
from datetime import timedelta

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.intervals import Interval, union
from crypto_pipeline.core.timeframes import DAY_MS as DAY_LENGTH
from crypto_pipeline.core.timeframes import MINUTE_MS, utc
from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline.database.gap_reader import (
    StoredPartition,
    due_days,
    gaps,
    live_since,
    missing_by_cause,
    partition_states,
    stored_runs,
)
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START, WINDOW, candles
from crypto_pipeline_tests.database.gaps import DAY, DAY_MS, LATER, NOW, at, gap, moved, record

BTC, ETH = ("BTC/USDT", "1m"), ("ETH/USDT", "1m")


def minutes(*runs: tuple[int, int]) -> tuple[Interval, ...]:
    return tuple(
        Interval(DAY_MS + first * MINUTE_MS, DAY_MS + last * MINUTE_MS) for first, last in runs
    )


# --- runs ----------------------------------------------------------------------------------------


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    btc=st.sets(st.integers(0, 40)),
    five=st.sets(st.integers(0, 8)),
    bounds=st.tuples(st.integers(0, 45), st.integers(0, 45)).map(sorted),
)
def test_runs_are_what_the_stored_candles_cover(conn, btc, five, bounds) -> None:
    """Against the union of the candles' intervals; what is outside the window has no part in it."""
    empty(conn)
    every, fives = candles(["BTC/USDT"], minutes=41), candles(["BTC/USDT"], minutes=41)
    fives = fives.assign(timeframe="5m")
    for frame, chosen, step in ((every, btc, 1), (fives, five, 5)):
        rows = frame.iloc[sorted(step * number for number in chosen)]
        upsert_candles(conn, rows, **WINDOW)
    series = [("BTC/USDT", "5m"), BTC, ETH]
    start, end = bounds
    found = stored_runs(conn, exchange="binance", series=series, start=at(start), end=at(end))
    assert found == {
        ("BTC/USDT", "5m"): union(
            minutes(*((5 * n, 5 * n + 5) for n in five if start <= 5 * n < end))
        ),
        BTC: union(minutes(*((n, n + 1) for n in btc if start <= n < end))),
        ETH: (),
    }
    assert list(found) == series


def test_runs_pass_midnights_and_chunks(conn) -> None:
    """Nothing of the storage shows in them, and other exchanges do not either."""
    day = timedelta(days=1)
    frame = candles(["BTC/USDT"], minutes=1440)
    for number in range(40):
        moved_frame = frame.assign(open_time=frame["open_time"] + number * day)
        window = {"start": START + number * day, "end": START + (number + 1) * day}
        upsert_candles(conn, moved_frame, exchange="binance", **window)
    upsert_candles(conn, frame, **{**WINDOW, "exchange": "kraken"})
    scope = {"series": [BTC], "start": START - day, "end": START + 50 * day}
    found = stored_runs(conn, exchange="binance", **scope)
    assert found == {BTC: (Interval(DAY_MS, DAY_MS + 40 * DAY_LENGTH),)}
    assert stored_runs(conn, exchange="okx", **scope) == {BTC: ()}
    assert stored_runs(conn, exchange="okx", **{**scope, "series": []}) == {}


def test_as_many_candles_as_fit_are_no_run_if_one_is_off_the_grid(conn) -> None:
    """Nobody of ours stores such a candle; the minute that is missing must not hide behind it."""
    upsert_candles(conn, candles(["BTC/USDT"], minutes=4), **WINDOW)
    conn.execute(
        "UPDATE candles SET open_time = open_time + interval '30 seconds'"
        " WHERE extract(minute FROM open_time) = 2"
    )
    found = stored_runs(conn, series=[BTC], **WINDOW)[BTC]
    assert found[0] == minutes((0, 2))[0]
    assert found[-1] == minutes((3, 4))[0]


def test_runs_of_fifty_series_take_a_fraction_of_a_second(conn) -> None:
    """38 ms here with 2,146 runs; the bound leaves room for a machine that is busy."""
    symbols = [f"S{number:02}/USDT" for number in range(50)]
    frame = candles(symbols, minutes=1440).sample(frac=0.97, random_state=1)
    upsert_candles(conn, frame, **WINDOW)
    series = [(symbol, "1m") for symbol in symbols]
    began = time.monotonic()
    found = stored_runs(conn, series=series, **WINDOW)
    assert time.monotonic() - began < 2
    assert sum(run.end - run.start for runs in found.values() for run in runs) == (
        len(frame) * MINUTE_MS
    )


def test_a_series_of_no_timeframe_is_refused(conn) -> None:
    with pytest.raises(ValueError, match="'1M' is not a timeframe"):
        stored_runs(conn, series=[("BTC/USDT", "1M")], **WINDOW)


# --- the ledger ----------------------------------------------------------------------------------


def test_gaps_that_touch_the_window_are_read_whole(conn) -> None:
    """Half-open at both ends, of the gaps and of the window; also a gap of a whole day."""
    early, whole = gap(10, 20), gap(0, 1440, symbol="ETH/USDT")
    record(conn, early, gap(30, 40, "unknown"), whole)

    def read(first: int, last: int) -> list[object]:
        return gaps(conn, exchange="binance", start=at(first), end=at(last))

    assert read(19, 30) == [early, whole]
    assert read(20, 30) == [whole]
    assert read(0, 10) == [whole]
    assert read(15, 16) == [early, whole]
    assert read(1439, 1500) == [whole]
    assert read(1440, 1500) == []
    assert gaps(conn, exchange="kraken", start=at(0), end=at(1440)) == []


def test_due_days_are_those_whose_retry_has_come(conn) -> None:
    """The instant itself counts; proven gaps are never due."""
    days = [DAY + timedelta(days=number) for number in range(4)]
    record(conn, gap(0, 5), day=DAY)
    for day, retry in zip(days[1:], (LATER + 1, LATER, LATER - 5), strict=True):
        record(conn, moved(gap(0, 9, "unknown", next_retry=retry), day), day=day)
    record(conn, gap(0, 5, "rejected", next_retry=NOW), exchange="kraken")
    assert due_days(conn, exchange="binance", now=utc(LATER - 6)) == []
    assert due_days(conn, exchange="binance", now=utc(LATER)) == days[2:]
    assert due_days(conn, exchange="binance", now=utc(LATER + 1)) == days[1:]
    assert due_days(conn, exchange="kraken", now=utc(NOW)) == [DAY]


def test_a_failed_request_is_due_once_the_exchange_is_back(conn) -> None:
    """After an outage the waits have grown long: the first answer about any day ends them."""
    tomorrow, minute = DAY + timedelta(days=1), 60_000
    failed = gap(0, 9, "fetch_failed", last_checked=NOW, next_retry=LATER)
    record(conn, failed, gap(20, 21, "unknown"), answered_at=NOW - minute)
    now = utc(NOW + 1)
    record(conn, exchange="kraken", answered_at=NOW + 5 * minute)
    record(conn, day=tomorrow, answered_at=None)
    assert due_days(conn, exchange="binance", now=now) == []
    record(conn, day=tomorrow, answered_at=NOW + 3 * minute)
    assert due_days(conn, exchange="binance", now=now) == [DAY]


def test_one_symbol_that_keeps_failing_is_not_due_whenever_another_is_answered(conn) -> None:
    """Heal runs every 30 seconds for ever: the exchange answered, but never about that symbol."""
    tomorrow, minute = DAY + timedelta(days=1), 60_000
    record(conn, gap(0, 9, "fetch_failed", last_checked=NOW, next_retry=LATER), answered_at=NOW)
    for passed in range(1, 10):
        record(conn, day=tomorrow, answered_at=NOW + passed * minute)
        assert due_days(conn, exchange="binance", now=utc(NOW + 1)) == []


def test_due_days_are_utc_days_in_any_session(conn) -> None:
    conn.execute("SET TIME ZONE 'Asia/Tokyo'")
    record(conn, gap(1439, 1440, "unknown"))
    assert due_days(conn, exchange="binance", now=utc(LATER)) == [DAY]


def test_partition_states_are_as_recorded(conn) -> None:
    """Counts, and completeness by the definition in core."""
    yesterday = DAY - timedelta(days=1)
    record(conn, day=yesterday, answered_at=None)
    record(conn, gap(0, 5), gap(5, 7, "unknown"), live=True)
    today = StoredPartition(
        complete=False,
        expected=10_000,
        stored=9_993,
        missing=7,
        unproven=2,
        live=True,
        answered_at=NOW,
        checked_at=NOW,
    )
    states = partition_states(conn, exchange="binance", since=yesterday)
    assert list(states) == [yesterday, DAY]
    assert states[DAY] == today
    assert states[yesterday].complete
    assert states[yesterday].answered_at is None
    assert partition_states(conn, exchange="binance", since=DAY) == {DAY: today}
    assert partition_states(conn, exchange="kraken", since=yesterday) == {}


def test_live_since_is_the_first_day_of_the_schedule(conn) -> None:
    """Backfilled days before it, and between its days, are none of its."""
    assert live_since(conn, exchange="binance") is None
    for number, live in ((-5, False), (0, True), (1, False), (2, True)):
        record(conn, day=DAY + timedelta(days=number), live=live)
    assert live_since(conn, exchange="binance") == DAY
    assert live_since(conn, exchange="kraken") is None


def test_missing_candles_are_counted_not_gaps(conn) -> None:
    """Over all days, by series and cause; a whole day of 1m is 1,440 and of 1h is 24."""
    tomorrow = DAY + timedelta(days=1)
    record(conn, gap(0, 5), gap(10, 12), gap(20, 21, "unknown"), gap(0, 1440, timeframe="1h"))
    record(conn, moved(gap(0, 1440), tomorrow), day=tomorrow)
    record(conn, gap(0, 7), exchange="kraken")
    assert missing_by_cause(conn, exchange="binance") == {
        BTC: {"no_trades": 1447, "unknown": 1},
        ("BTC/USDT", "1h"): {"no_trades": 24},
    }
    assert list(missing_by_cause(conn, exchange="binance")[BTC]) == ["no_trades", "unknown"]
    assert missing_by_cause(conn, exchange="okx") == {}


def test_the_due_are_found_without_reading_the_proven(conn) -> None:
    """A quiet market has hundreds of proven gaps a day; the due are asked for every minute."""
    quiet = [gap(number, number + 1) for number in range(0, 1440, 2)]
    for number in range(10):
        day = DAY + timedelta(days=number)
        record(conn, *(moved(one, day) for one in quiet), day=day)
    conn.execute("ANALYZE candle_gaps")
    plan = conn.execute(
        "EXPLAIN SELECT gap_start FROM candle_gaps WHERE exchange = 'binance'"
        " AND next_retry IS NOT NULL AND (next_retry <= now() OR cause = 'fetch_failed')"
    ).fetchall()
    assert any("candle_gaps_retry" in line for (line,) in plan), plan
    assert pd.Series(due_days(conn, exchange="binance", now=utc(LATER))).empty
