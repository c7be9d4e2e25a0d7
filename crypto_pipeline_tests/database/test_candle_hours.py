"""Hours of 1m candles are what their stored minutes make of them, whatever was written in which order."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START, WINDOW, candles, changed

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

HOURS = (
    "SELECT exchange, symbol, open_time, open, high, low, close, volume, minutes FROM candle_hours"
    " ORDER BY 1, 2, 3"
)
MINUTES = (
    "SELECT exchange, symbol, open_time, open, high, low, close, volume FROM candles"
    " WHERE timeframe = '1m' ORDER BY 1, 2, 3"
)
VERSIONS = "SELECT xmin::text, ctid::text FROM candle_hours ORDER BY exchange, symbol, open_time"

#: A symbol, its timeframe, and minutes of the day: a tick's one, a few, or some hours of them.
WRITES = st.lists(
    st.tuples(
        st.sampled_from([["BTC/USDT"], ["ETH/USDT", "BTC/USDT"]]),
        st.sampled_from(["1m", "1m", "5m"]),
        st.integers(0, 1_439),
        st.sampled_from([1, 2, 59, 60, 61, 150]),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=6,
)


def frame_of(
    symbols: list[str], timeframe: str, first: int, minutes: int, step: int
) -> pd.DataFrame:
    """With every ``step``-th minute; the seed says which values, so that some come again."""
    frame = candles(symbols, minutes=min(minutes, 1_440 - first), first=first, seed=step)
    frame = frame.iloc[::step].reset_index(drop=True)
    return frame.assign(timeframe=pd.Categorical([timeframe] * len(frame)))


def assert_hours_are_of_their_minutes(conn: psycopg.Connection) -> None:
    minutes = pd.DataFrame(
        conn.execute(MINUTES).fetchall(),
        columns=["exchange", "symbol", "open_time", "open", "high", "low", "close", "volume"],
    )
    rolled = minutes.groupby(
        ["exchange", "symbol", pd.to_datetime(minutes["open_time"], utc=True).dt.floor("h")]
    ).agg(
        open=("open", "first"), high=("high", "max"), low=("low", "min"), close=("close", "last"),
        volume=("volume", "sum"), minutes=("volume", "size"),
    )  # fmt: skip
    expected = [(*key, *row) for key, row in zip(rolled.index, rolled.to_numpy(), strict=True)]
    found = conn.execute(HOURS).fetchall()
    assert [row[:7] for row in found] == [row[:7] for row in expected]
    assert [row[8] for row in found] == [row[8] for row in expected]
    np.testing.assert_allclose([row[7] for row in found], [row[7] for row in expected], rtol=1e-12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(writes=WRITES)
def test_after_any_sequence_of_writes(conn: psycopg.Connection, writes: list[Any]) -> None:
    empty(conn)
    for write in writes:
        upsert_candles(conn, frame_of(*write), **WINDOW)
    assert_hours_are_of_their_minutes(conn)


def test_a_corrected_candle_changes_its_hour_and_no_other(conn: psycopg.Connection) -> None:
    frame = candles(["BTC/USDT"], minutes=1_440)
    upsert_candles(conn, frame, **WINDOW)
    before = conn.execute(VERSIONS).fetchall()
    upsert_candles(conn, frame, **WINDOW)
    assert conn.execute(VERSIONS).fetchall() == before
    upsert_candles(conn, changed(frame, [70]), **WINDOW)
    after = conn.execute(VERSIONS).fetchall()
    assert len(set(after) - set(before)) == 1
    assert_hours_are_of_their_minutes(conn)


def test_candles_that_somebody_deleted_come_back_with_their_hours(conn: psycopg.Connection) -> None:
    frame = candles(["BTC/USDT"], minutes=1_440)
    upsert_candles(conn, frame, **WINDOW)
    conn.execute("DELETE FROM candles")
    upsert_candles(conn, frame, **WINDOW)
    assert_hours_are_of_their_minutes(conn)


def test_an_hour_without_minutes_is_none(conn: psycopg.Connection) -> None:
    """Deleted by hand, its row goes when hours on both sides are written."""
    frame = candles(["BTC/USDT"], minutes=180)
    upsert_candles(conn, frame, **WINDOW)
    hour = START + timedelta(hours=1)
    conn.execute(
        "DELETE FROM candles WHERE open_time >= %s AND open_time < %s",
        [hour, hour + timedelta(hours=1)],
    )
    beside = frame.iloc[[*range(60), *range(120, 180)]].reset_index(drop=True)
    upsert_candles(conn, changed(beside, [59, 60]), **WINDOW)
    assert conn.execute("SELECT minutes FROM candle_hours").fetchall() == [(60,), (60,)]
    assert_hours_are_of_their_minutes(conn)


def test_lost_hours_come_back_when_their_candles_are_stored_again(conn: psycopg.Connection) -> None:
    """Deleted by hand, or left out when a copy was restored."""
    frame = candles(["BTC/USDT", "ETH/USDT"], minutes=150)
    upsert_candles(conn, frame, **WINDOW)
    conn.execute("DELETE FROM candle_hours WHERE symbol = 'ETH/USDT'")
    upsert_candles(conn, frame, **WINDOW)
    assert_hours_are_of_their_minutes(conn)


def test_a_tick_reads_its_own_hours_only(conn: psycopg.Connection) -> None:
    """It comes with the whole day, of which one minute is new."""
    frame = candles(["BTC/USDT"], minutes=1_440)
    upsert_candles(conn, frame.iloc[:1_000], **WINDOW)
    conn.execute("UPDATE candle_hours SET minutes = 59 WHERE open_time = %s", [START])
    upsert_candles(conn, frame.iloc[:1_001], **WINDOW)
    counts = [minutes for (*_, minutes) in conn.execute(HOURS)]
    assert (counts[0], counts[-1]) == (59, 41)


def test_volumes_that_add_up_to_infinity_keep_no_candle_from_being_stored(
    conn: psycopg.Connection,
) -> None:
    """PostgreSQL refuses a sum that overflows, and a roll-up must not cost a candle."""
    frame = candles(["BTC/USDT"], minutes=3)
    upsert_candles(conn, frame.iloc[:1], **WINDOW)
    upsert_candles(conn, frame.assign(volume=1.7e308), **WINDOW)
    assert conn.execute("SELECT minutes FROM candle_hours").fetchall() == [(3,)]


@pytest.mark.parametrize("use_timescaledb", [True, False])
def test_a_database_with_candles_gets_their_hours(
    make_database: Callable[[], str], timescaledb: None, *, use_timescaledb: bool
) -> None:
    url = make_database()
    upgrade(url, use_timescaledb=use_timescaledb)
    with connect(url) as conn:
        for symbols, timeframe in ((["BTC/USDT", "ETH/USDT"], "1m"), (["BTC/USDT"], "5m")):
            frame = frame_of(symbols, timeframe, 7, 300, 3)
            for exchange in ("binance", "kraken"):
                upsert_candles(conn, frame, **{**WINDOW, "exchange": exchange})
        kept = conn.execute(HOURS).fetchall()
        conn.execute("DROP TABLE candle_hours")
        conn.execute("UPDATE crypto_pipeline_version SET version_num = '0005'")
        upgrade(url)
        found = conn.execute(HOURS).fetchall()
        assert len(found) == 4 * 6
        assert found == kept
        assert found[0][2] == START
        assert_hours_are_of_their_minutes(conn)
