"""Runs end in any order: what the exchange said last counts, not who wrote last."""

from __future__ import annotations

import pandas as pd

from crypto_pipeline.database.candle_writer import WriteResult, upsert_candles
from crypto_pipeline_tests.database.frames import WINDOW, candles, changed
from crypto_pipeline_tests.database.stored import VERSIONS, as_stored, rows, wal_position

SYMBOLS = ["BTC/USDT", "ETH/USDT", "ÄTH/€"]


def test_an_older_answer_replaces_nothing(conn) -> None:
    """A slow run that asked before a correction came must not undo it; what is new is stored."""
    frame = candles(SYMBOLS, minutes=4)
    older = changed(frame, [0, 5, 9], run_id="slow")  # other values in three rows
    older["fetched_at"] = frame["fetched_at"] - pd.Timedelta(milliseconds=1)
    older["source"] = pd.Categorical(["trades"] * len(older))
    upsert_candles(conn, frame.drop(index=[9]), **WINDOW)
    before = rows(conn, VERSIONS)
    result = upsert_candles(conn, older, **WINDOW)
    assert result == WriteResult(inserted=1, unchanged=9, stale=2)
    after = rows(conn, VERSIONS)
    assert set(before) < set(after)
    assert [row[-2] for row in set(after) - set(before)] == ["slow"]


def test_a_stale_candle_costs_no_wal(conn) -> None:
    """Not even a lock: ON CONFLICT would log one for each row it then leaves."""
    frame = candles(SYMBOLS, minutes=1440)
    upsert_candles(conn, frame, **WINDOW)
    stale = changed(frame, list(range(len(frame))))
    stale["fetched_at"] = frame["fetched_at"] - pd.Timedelta(minutes=1)
    upsert_candles(conn, stale, **WINDOW)  # the first reading sets hint bits, which are logged
    position = wal_position(conn)
    assert upsert_candles(conn, stale, **WINDOW) == WriteResult(stale=len(frame))
    assert wal_position(conn) - position < 70 * len(frame)
    assert rows(conn) == as_stored(frame)


def test_of_two_answers_of_the_same_time_the_last_written_stays(conn) -> None:
    frame = candles(["BTC/USDT"])
    upsert_candles(conn, frame, **WINDOW)
    again = changed(frame, [1]).assign(fetched_at=frame["fetched_at"])
    assert upsert_candles(conn, again, **WINDOW) == WriteResult(changed=1, unchanged=2)
    assert rows(conn) == as_stored(again.assign(run_id=["run", "later", "run"]))
