from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.database import rejected_writer
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline.database.tables import MESSAGE_LIMIT, RECEIVED_LIMIT
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START, candles

if TYPE_CHECKING:
    import psycopg

DAY = START.date()


def refused(rows: int = 4, *, run_id: str = "run", rule: str = "high_below_low") -> pd.DataFrame:
    frame = candles(["BTC/USDT"], minutes=rows, run_id=run_id)
    received = [f"[{minute}, 1, 2]" for minute in range(rows)]
    return frame.assign(rule=rule, message="high is below low", received=received)


def record(conn: psycopg.Connection, frame: pd.DataFrame) -> int:
    return record_rejected(conn, frame, exchange="binance", partition_date=DAY)


def column(conn: psycopg.Connection, name: str) -> list[object]:
    rows = conn.execute("SELECT * FROM rejected_candles ORDER BY open_time, rejection_id")
    names = [description.name for description in rows.description or ()]
    return [row[names.index(name)] for row in rows]


def test_validating_the_same_observations_again_adds_nothing(conn) -> None:
    assert record(conn, refused()) == 4
    first_time = column(conn, "rejected_at")
    assert record(conn, refused()) == 0
    assert record(conn, refused().sample(frac=1, random_state=1)) == 0
    assert column(conn, "rejected_at") == first_time


def test_a_row_received_every_minute_is_recorded_once(conn) -> None:
    """A live tick asks for the last candles again and again: one bad row made 1,440 a day."""
    record(conn, refused(run_id="first"))
    again = refused(run_id="second")
    again["fetched_at"] += pd.Timedelta(minutes=1)
    assert record(conn, again) == 0
    assert record(conn, pd.concat([refused(run_id="first"), again])) == 0
    assert set(column(conn, "run_id")) == {"first"}


def test_equal_rows_of_one_answer_count_each(conn) -> None:
    """An answer with a candle three times has two duplicates, both refused."""
    twice = pd.concat([refused(1, rule="duplicate")] * 2)
    assert record(conn, twice) == 2
    assert record(conn, twice) == 0


def test_rule_partition_exchange_and_series_tell_rows_apart(conn) -> None:
    frame = refused(1)
    assert record(conn, frame) == 1
    assert record(conn, frame.assign(rule="off_grid")) == 1
    assert record(conn, frame.assign(symbol="ETH/USDT")) == 1
    assert record(conn, frame.assign(timeframe="5m")) == 1
    assert record(conn, frame.assign(received="[7]")) == 1
    assert record(conn, frame.assign(message="said otherwise")) == 0
    assert record_rejected(conn, frame, exchange="kraken", partition_date=DAY) == 1
    other_day = DAY.replace(day=1)
    assert record_rejected(conn, frame, exchange="binance", partition_date=other_day) == 1


def test_what_a_column_cannot_hold_is_null_and_stays_in_received(conn) -> None:
    frame = refused(4)
    frame.loc[0, "open"] = np.nan
    frame.loc[1, "high"] = np.inf
    frame.loc[2, "open_time"] = pd.NaT
    far = pd.Series(np.array([10**15], "datetime64[ms]")).dt.tz_localize("UTC")
    frame.loc[3, "open_time"] = far[0]
    assert record(conn, frame) == 4
    rows = conn.execute("SELECT received, open, high, open_time FROM rejected_candles").fetchall()
    by_received = {row[0]: row[1:] for row in rows}
    assert by_received["[0, 1, 2]"][0] is None
    assert by_received["[1, 1, 2]"][1] == np.inf
    assert by_received["[2, 1, 2]"][2] is None
    assert by_received["[3, 1, 2]"][2] is None


def test_long_texts_are_cut_and_still_told_apart(conn) -> None:
    """An exchange once answered a megabyte of HTML as a row."""
    frame = refused(2)
    frame["received"] = ["x" * 10**6 + "a", "x" * 10**6 + "b"]
    frame["message"] = "m" * 10**5
    assert record(conn, frame) == 2
    assert {len(str(text)) for text in column(conn, "received")} == {RECEIVED_LIMIT}
    assert {len(str(text)) for text in column(conn, "message")} == {MESSAGE_LIMIT}


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(), min_size=1, max_size=5, unique=True))
def test_any_text_an_exchange_sends_is_recorded(conn, texts) -> None:
    """NUL and lone surrogates, which no text column can hold, included."""
    empty(conn)
    frame = refused(len(texts)).assign(received=pd.Series(texts, dtype=object))
    added = record(conn, frame)
    assert record(conn, frame) == 0
    assert len(column(conn, "received")) == added


def test_many_rows_go_in_batches_of_one_transaction(conn, monkeypatch) -> None:
    monkeypatch.setattr(rejected_writer, "BATCH_ROWS", 3)
    assert record(conn, refused(10)) == 10
    assert len({str(time) for time in column(conn, "rejected_at")}) == 1


def test_nothing_refused_is_no_statement(conn) -> None:
    assert record(conn, refused(0)) == 0
