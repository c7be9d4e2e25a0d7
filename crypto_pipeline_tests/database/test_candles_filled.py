"""``candles_filled`` and what reads it: nothing that may have traded is ever made up."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.gaps import CAUSES
from crypto_pipeline.database.candle_reader import read_candles
from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START, WINDOW, candles
from crypto_pipeline_tests.database.gaps import DAY, at, gap, moved, record

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

SERIES: dict[str, Any] = {"exchange": "binance", "symbol": "BTC/USDT", "timeframe": "1m"}
FILLED = (
    "SELECT (extract(epoch FROM open_time - %(day)s) / 60)::int, filled, open, high, low, close,"
    " volume FROM candles_filled(%(exchange)s, %(symbol)s, %(timeframe)s, %(start)s, %(end)s)"
    " ORDER BY open_time"
)


def store(conn: psycopg.Connection, minutes: Collection[int], *, exchange: str = "binance") -> None:
    """Candles of these minutes; the minute's number plus one is every price."""
    frame = candles(["BTC/USDT"], minutes=1440).iloc[sorted(minutes)]
    prices = dict.fromkeys(("open", "high", "low", "close"), frame.index + 1.0)
    upsert_candles(conn, frame.assign(**prices, volume=9.0), **{**WINDOW, "exchange": exchange})


def filled(conn: psycopg.Connection, first: int, last: int, **changes: Any) -> dict[int, object]:
    """By minute: its price, if flat, with its cause; a stored candle must be as it was stored."""
    scope = {**SERIES, "day": START, "start": at(first), "end": at(last), **changes}
    found: dict[int, object] = {}
    for minute, cause, *prices, volume in conn.execute(FILLED, scope).fetchall():
        assert minute not in found, "two rows of one candle"
        assert len(set(prices)) == 1
        assert volume == (9.0 if cause is None else 0.0)
        found[minute] = prices[0] if cause is None else (prices[0], cause)
    assert list(found) == sorted(found)
    return found


def test_a_proven_quiet_time_is_flat_at_the_last_close(conn) -> None:
    store(conn, {0, 1, 5, 8})
    record(conn, gap(2, 5), gap(6, 7, "exchange_outage"))
    assert filled(conn, 0, 9) == {
        0: 1.0, 1: 2.0, 2: (2.0, "no_trades"), 3: (2.0, "no_trades"), 4: (2.0, "no_trades"),
        5: 6.0, 6: (6.0, "exchange_outage"), 8: 9.0,
    }  # fmt: skip


def test_candles_missing_for_any_other_reason_stay_absent(conn) -> None:
    """Zero volume where trades were, or before a listing, would be a lie in every backtest."""
    store(conn, {0, 2 * len(CAUSES)})
    record(conn, *(gap(2 * n + 1, 2 * n + 2, cause) for n, cause in enumerate(CAUSES)))
    flat = {minute: row for minute, row in filled(conn, 0, 1440).items() if isinstance(row, tuple)}
    assert flat == {1: (1.0, "no_trades"), 3: (1.0, "exchange_outage")}


def test_the_price_comes_from_before_the_window_and_never_from_after(conn) -> None:
    """A window that begins inside a quiet time, also a day later; without a price, nothing."""
    tomorrow = DAY + timedelta(days=1)
    store(conn, {100, 110})
    record(conn, gap(0, 100), gap(101, 110), gap(111, 1440))
    record(conn, moved(gap(0, 1440), tomorrow), day=tomorrow)
    assert filled(conn, 0, 100) == {}
    assert filled(conn, 98, 102) == {100: 101.0, 101: (101.0, "no_trades")}
    assert filled(conn, 105, 107) == dict.fromkeys((105, 106), (101.0, "no_trades"))
    assert filled(conn, 2000, 2002) == dict.fromkeys((2000, 2001), (111.0, "no_trades"))
    assert len(filled(conn, 0, 9999)) == 2 * 1440 - 100
    assert filled(conn, 5, 5) == {}


def test_a_candle_that_came_after_all_takes_the_place_of_its_flat_one(conn) -> None:
    """Between the writing of a candle and of the ledger, a reader must not see it twice."""
    store(conn, {0, 2})
    record(conn, gap(0, 5))
    assert filled(conn, 0, 5) == {
        0: 1.0, 1: (1.0, "no_trades"), 2: 3.0, 3: (3.0, "no_trades"), 4: (3.0, "no_trades"),
    }  # fmt: skip


MINUTES = st.sets(st.integers(0, 30))
CUTS = st.lists(
    st.tuples(st.integers(0, 31), st.sampled_from(CAUSES)),
    min_size=2, max_size=10, unique_by=lambda cut: cut[0],
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stored=MINUTES, cuts=CUTS, window=st.tuples(st.integers(0, 32), st.integers(0, 32)))
def test_any_ledger_fills_by_the_definition(conn, stored, cuts, window) -> None:
    """Candles and gaps at random, overlapping too, against a loop over the minutes."""
    empty(conn)
    store(conn, stored)
    cuts.sort()
    gaps = [gap(a, b, why) for (a, why), (b, _) in zip(cuts[::2], cuts[1::2], strict=False)]
    record(conn, *gaps)
    expected: dict[int, object] = {}
    close = None
    for minute in range(32):
        why = next((g.cause for g in gaps if g.start <= gap(minute, 32).start < g.end), None)
        if minute in stored:
            expected[minute] = close = minute + 1.0
        elif why in {"no_trades", "exchange_outage"} and close is not None:
            expected[minute] = (close, why)
    first, last = min(window), max(window)
    assert filled(conn, first, last) == {
        minute: row for minute, row in expected.items() if first <= minute < last
    }


def test_each_series_is_filled_by_its_own_candles_and_gaps(conn) -> None:
    store(conn, {0})
    store(conn, {1}, exchange="kraken")
    record(conn, gap(2, 3, symbol="ETH/USDT"), gap(5, 10, timeframe="5m"))
    record(conn, gap(3, 4), exchange="kraken")
    assert filled(conn, 0, 9) == {0: 1.0}
    assert filled(conn, 0, 9, exchange="kraken") == {1: 2.0, 3: (2.0, "no_trades")}
    assert filled(conn, 0, 9, symbol="ETH/USDT") == {}


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])  # its clocks change on the 10th
@pytest.mark.parametrize(
    ("timeframe", "length"),
    [
        ("30s", timedelta(seconds=30)),
        ("1m", timedelta(minutes=1)),
        ("15m", timedelta(minutes=15)),
        ("4h", timedelta(hours=4)),
        ("1d", timedelta(days=1)),
    ],
)
def test_every_timeframe_has_its_grid(conn, timeframe, length, zone) -> None:
    """By the length of the candle, whatever the session's time zone makes of a day."""
    conn.execute("SELECT set_config('TimeZone', %s, false)", [zone])
    start = START - length
    frame = candles(["BTC/USDT"], minutes=1).assign(open_time=pd.Timestamp(start))
    window = {"exchange": "binance", "start": start, "end": START}
    upsert_candles(conn, frame.assign(timeframe=timeframe), **window)
    days = [DAY + timedelta(days=number) for number in range(3)]
    for day in days:
        record(conn, moved(gap(0, 1440, timeframe=timeframe), day), day=day)
    rows = conn.execute(
        "SELECT open_time FROM candles_filled('binance', 'BTC/USDT', %s, %s, %s) ORDER BY 1",
        [timeframe, START, START + timedelta(days=3)],
    ).fetchall()
    assert rows == [(START + number * length,) for number in range(timedelta(days=3) // length)]


@pytest.mark.parametrize("timeframe", ["1M", "1w", "m", "", "1.5m", "-1m", "1 m"])
def test_what_is_no_timeframe_fills_nothing_and_is_no_error(conn, timeframe) -> None:
    """``1M`` is a month: to take it for a minute would fill 40,000 rows."""
    store(conn, {0})
    conn.execute("UPDATE candles SET timeframe = %s", [timeframe])
    conn.execute(
        "INSERT INTO candle_gaps VALUES ('binance', 'BTC/USDT', %s, %s, %s, 'no_trades', '', %s)",
        [timeframe, at(1), at(1440), START],
    )
    assert filled(conn, 0, 1440, timeframe=timeframe) == {0: 1.0}


def test_its_result_can_be_joined_and_called_by_name(conn) -> None:
    """It is part of a reader's statement: names of columns, in any place, mean the columns."""
    store(conn, {0, 2})
    record(conn, gap(1, 2))
    rows = conn.execute(
        "SELECT s.symbol, f.exchange, f.timeframe, f.filled, f.source, f.run_id, f.fetched_at"
        " FROM (SELECT DISTINCT exchange, symbol, timeframe FROM candles) AS s"
        " CROSS JOIN LATERAL candles_filled(of_exchange => s.exchange, of_symbol => s.symbol,"
        "  of_timeframe => s.timeframe, since => '-infinity', before => 'infinity') AS f"
        " WHERE f.close = 1 ORDER BY f.open_time"
    ).fetchall()
    assert [row[:5] for row in rows] == [
        ("BTC/USDT", "binance", "1m", None, "ohlcv"),
        ("BTC/USDT", "binance", "1m", "no_trades", None),
    ]
    assert rows[1][5:] == (None, None)


def test_a_month_of_minutes_is_one_range_of_the_key(conn) -> None:
    """80 ms here, 14,400 of 43,200 filled; the bound leaves room for a machine that is busy."""
    frame = candles(["BTC/USDT"], minutes=1440)
    quiet = [gap(minute, minute + 1) for minute in range(1, 1440, 3)]
    frame = frame[frame["open_time"].dt.minute % 3 != 1]
    for number in range(31):
        day = timedelta(days=number)
        part = frame.assign(open_time=frame["open_time"] + day)
        upsert_candles(
            conn, part, exchange="binance", start=START + day, end=START + day + timedelta(days=1)
        )
        record(conn, *(moved(one, DAY + day) for one in quiet), day=DAY + day)
    conn.execute("ANALYZE candles, candle_gaps")
    scope = {**SERIES, "day": START, "start": START, "end": START + timedelta(days=30)}
    began = time.monotonic()
    rows = conn.execute(FILLED, scope).fetchall()
    assert time.monotonic() - began < 3
    assert len(rows) == 30 * 1440
    assert sum(row[1] is not None for row in rows) == 30 * 480
    assert highest_cost(plan_of(conn, scope)) < 100_000  # from there on a server compiles it
    plan = plan_of(conn, {**scope, "start": START + timedelta(days=5), "end": at(6 * 1440)})
    assert "Seq Scan" not in plan, plan
    assert "Function Scan on candles_filled" not in plan, "the planner does not see into it"


def plan_of(conn: psycopg.Connection, scope: dict[str, Any]) -> str:
    """As for a statement with literals: that of a person, or of read_candles."""
    rows = psycopg.ClientCursor(conn).execute("EXPLAIN " + FILLED, scope).fetchall()
    return "\n".join(line for (line,) in rows)


def highest_cost(plan: str) -> float:
    return max(float(cost) for cost in re.findall(r"cost=[\d.]+\.\.([\d.]+)", plan))


def read(conn: psycopg.Connection, start: datetime, end: datetime, *, fill: bool) -> pd.DataFrame:
    return read_candles(conn, **SERIES, start=start, end=end, fill=fill)


def test_a_frame_has_the_cause_of_each_flat_candle(conn) -> None:
    """The stored ones come back as without ``fill``; the flat ones have no answer behind them."""
    store(conn, {0, 1, 4})
    record(conn, gap(2, 4))
    found, stored = read(conn, at(0), at(9), fill=True), read(conn, at(0), at(9), fill=False)
    assert list(found) == [*stored, "filled"]
    flat = found["filled"].notna()
    assert found["filled"][flat].tolist() == ["no_trades", "no_trades"]
    assert found.loc[flat, ["fetched_at", "run_id", "source"]].isna().all(axis=None)
    assert found.loc[flat, "close"].tolist() == [2.0, 2.0]
    pd.testing.assert_frame_equal(
        found[~flat].drop(columns="filled").reset_index(drop=True), stored
    )
    assert read(conn, at(20), at(30), fill=True).empty


def test_texts_that_look_like_nothing_are_read_as_they_are(conn) -> None:
    """Arrow takes ``NA``, ``null`` and empty texts for missing unless told not to."""
    words = ["", "NA", "null", "NaN", "-"]
    frame = candles(["BTC/USDT"], minutes=len(words))
    upsert_candles(conn, frame.assign(run_id=pd.Categorical(words)), **WINDOW)
    assert read(conn, at(0), at(9), fill=False)["run_id"].tolist() == words
