from __future__ import annotations

from datetime import timedelta
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.database import candle_writer
from crypto_pipeline.database.candle_reader import count_candles, read_candles
from crypto_pipeline.database.candle_writer import WriteResult, upsert_candles
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline_tests.database.conftest import empty
from crypto_pipeline_tests.database.frames import START, WINDOW, candles, changed
from crypto_pipeline_tests.database.stored import VERSIONS, as_stored, rows, wal_position

SYMBOLS = ["BTC/USDT", "ETH/USDT", "ÄTH/€"]

PRICE = st.floats(min_value=5e-324, max_value=1.7976931348623157e308)
CANDLE = st.tuples(
    st.lists(PRICE, min_size=4, max_size=4).map(sorted),
    st.floats(min_value=0, allow_infinity=False),
)
KEYS = st.tuples(st.sampled_from(SYMBOLS), st.sampled_from(["1m", "5m"]), st.integers(0, 5))
PARTITIONS = st.lists(
    st.dictionaries(KEYS, st.one_of(CANDLE, st.just(([1.0, 1.0, 1.0, 1.0], 0.0))), min_size=1),
    min_size=1,
    max_size=5,
)


def frame_of(partition: dict, *, run_id: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "symbol": symbol,
                "timeframe": timeframe,
                "open_time": pd.Timestamp(START) + pd.Timedelta(minutes=5 * step),
                **dict(zip(["low", "open", "close", "high"], prices, strict=True)),
                "volume": volume,
                "fetched_at": pd.Timestamp(START),
                "run_id": run_id,
                "source": "ohlcv",
            }
            for (symbol, timeframe, step), (prices, volume) in partition.items()
        ]
    )


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(partitions=PARTITIONS)
def test_any_sequence_of_writes_ends_as_a_dictionary_would(conn, partitions) -> None:
    """New keys are added, other values replace, equal ones keep the run that brought them."""
    empty(conn)
    model: dict[tuple[object, ...], tuple[object, ...]] = {}
    for number, partition in enumerate(partitions):
        before = dict(model)
        for key, (prices, volume) in partition.items():
            values = (*prices, volume)
            if key not in model or model[key][:-1] != values:
                model[key] = (*values, f"run{number}")
        new = sum(key not in before for key in partition)
        replaced = sum(model[key] != before[key] for key in partition if key in before)
        assert upsert_candles(
            conn, frame_of(partition, run_id=f"run{number}"), **WINDOW
        ) == WriteResult(inserted=new, changed=replaced, unchanged=len(partition) - new - replaced)
    stored = rows(
        conn,
        "SELECT symbol, timeframe, (extract(epoch FROM open_time) % 86400)::int / 300,"
        " low, open, close, high, volume, run_id FROM candles",
    )
    assert {row[:3]: row[3:] for row in stored} == model


def test_partitions_written_a_b_a_leave_a(conn) -> None:
    a = candles(SYMBOLS, seed=1, run_id="a")
    b = candles(SYMBOLS, seed=2, run_id="b")
    upsert_candles(conn, a, **WINDOW)
    assert rows(conn) == as_stored(a)
    assert upsert_candles(conn, b, **WINDOW) == WriteResult(changed=len(a))
    assert rows(conn) == as_stored(b)
    assert upsert_candles(conn, a, **WINDOW) == WriteResult(changed=len(a))
    assert rows(conn) == as_stored(a)


def test_an_unchanged_candle_keeps_its_row_version_and_costs_no_wal(conn) -> None:
    """ON CONFLICT alone writes 181 bytes of WAL for each row it leaves as it is."""
    frame = candles(SYMBOLS, minutes=1440)
    upsert_candles(conn, frame, **WINDOW)
    later = changed(frame, [])
    upsert_candles(conn, later, **WINDOW)  # the first reading sets hint bits, which are logged
    before, position = rows(conn, VERSIONS), wal_position(conn)
    assert upsert_candles(conn, later, **WINDOW) == WriteResult(unchanged=len(frame))
    assert rows(conn, VERSIONS) == before
    # Something is logged all the same: the staging table's place in the catalogue.
    assert wal_position(conn) - position < 70 * len(frame)


def test_a_first_load_needs_no_staging_table(conn, monkeypatch) -> None:
    """COPY straight into an empty window is twice as fast as by way of a staging table."""
    monkeypatch.setattr(candle_writer, "_MAKE_STAGING", "SELECT 1 / 0")
    assert upsert_candles(conn, candles(SYMBOLS), **WINDOW) == WriteResult(inserted=9)
    ethereum = candles(["ETH/EUR"], minutes=1)
    assert upsert_candles(conn, ethereum, **WINDOW) == WriteResult(inserted=1)
    with pytest.raises(DatabaseError, match="division by zero"):
        upsert_candles(conn, ethereum, **WINDOW)


def test_only_changed_candles_get_a_new_row_version(conn) -> None:
    frame = candles(SYMBOLS, minutes=10)
    upsert_candles(conn, frame, **WINDOW)
    before = rows(conn, VERSIONS)
    later = changed(frame, [4, 17])
    assert upsert_candles(conn, later, **WINDOW) == WriteResult(changed=2, unchanged=28)
    differ = [
        position
        for position, (old, new) in enumerate(zip(before, rows(conn, VERSIONS), strict=True))
        if old != new
    ]
    assert differ == [4, 17]
    assert [row[-2] for row in rows(conn)].count("later") == 2


def test_minus_zero_is_no_change(conn) -> None:
    frame = candles(["BTC/USDT"]).assign(volume=0.0)
    upsert_candles(conn, frame, **WINDOW)
    again = frame.assign(volume=-0.0)
    assert upsert_candles(conn, again, **WINDOW) == WriteResult(unchanged=3)


def test_a_smaller_frame_deletes_nothing(conn) -> None:
    """A run that got only part of the day must not take the rest away."""
    frame = candles(SYMBOLS)
    upsert_candles(conn, frame, **WINDOW)
    assert upsert_candles(conn, frame.iloc[:1], **WINDOW) == WriteResult(unchanged=1)
    assert upsert_candles(conn, frame.iloc[:0], **WINDOW) == WriteResult()
    assert rows(conn) == as_stored(frame)


def test_other_exchanges_days_and_timeframes_are_left_alone(conn) -> None:
    """The same symbol and minute elsewhere are other candles."""
    frame = candles(SYMBOLS, seed=1)
    day = timedelta(days=1)
    written = [
        (frame, WINDOW),
        (frame, {**WINDOW, "exchange": "kraken"}),
        (
            frame.assign(open_time=frame["open_time"] + day),
            {**WINDOW, "start": START + day, "end": START + 2 * day},
        ),
        (frame.assign(timeframe="5m"), WINDOW),
    ]
    for part, window in written:
        assert upsert_candles(conn, part, **window) == WriteResult(inserted=len(frame))
    before = rows(conn)
    assert upsert_candles(conn, candles(SYMBOLS, seed=2), **WINDOW).changed == len(frame)
    assert len(set(before) - set(rows(conn))) == len(frame)


def test_rows_may_come_in_any_order_and_dtype(conn) -> None:
    frame = candles(SYMBOLS, minutes=50)
    shuffled = frame.sample(frac=1, random_state=7)
    upsert_candles(conn, shuffled, **WINDOW)
    assert rows(conn) == as_stored(frame)
    plain = frame.astype({"symbol": "str", "timeframe": object, "open_time": "datetime64[ns, UTC]"})
    assert upsert_candles(conn, plain, **WINDOW) == WriteResult(unchanged=len(frame))


def test_what_was_written_is_read_back(conn) -> None:
    frame = candles(SYMBOLS, minutes=1440)
    upsert_candles(conn, frame, **WINDOW)
    for symbol in SYMBOLS:
        expected = frame[frame["symbol"] == symbol].reset_index(drop=True)
        for name in ("symbol", "timeframe"):
            expected[name] = expected[name].cat.remove_unused_categories()
        found = read_candles(conn, symbol=symbol, timeframe="1m", **WINDOW)
        pd.testing.assert_frame_equal(found[expected.columns], expected)


def test_reading_takes_the_half_open_window(conn) -> None:
    upsert_candles(conn, candles(["BTC/USDT"], minutes=10), **WINDOW)
    minute = timedelta(minutes=1)
    window = {**WINDOW, "start": START + 2 * minute, "end": START + 5 * minute}
    found = read_candles(conn, symbol="BTC/USDT", timeframe="1m", **window)
    assert list(found["open_time"].dt.minute) == [2, 3, 4]
    assert count_candles(conn, **window)["count"].tolist() == [3]


def test_reading_nothing_gives_an_empty_frame_of_the_same_shape(conn) -> None:
    upsert_candles(conn, candles(["BTC/USDT"]), **WINDOW)
    some = read_candles(conn, symbol="BTC/USDT", timeframe="1m", **WINDOW)
    none = read_candles(conn, symbol="BTC/USDT", timeframe="5m", **WINDOW)
    categories = ["symbol", "timeframe", "run_id", "source"]
    assert none.empty
    assert (none.drop(columns=categories).dtypes == some.drop(columns=categories).dtypes).all()
    assert list(none) == list(some)


def test_counting_tells_each_series(conn) -> None:
    upsert_candles(conn, candles(["BTC/USDT"], minutes=3), **WINDOW)
    upsert_candles(conn, candles(["ETH/USDT"], minutes=2, first=7), **WINDOW)
    upsert_candles(conn, candles(["XRP/USDT"]), **{**WINDOW, "exchange": "kraken"})
    counts = count_candles(conn, **WINDOW)
    assert counts[["symbol", "timeframe", "count"]].to_numpy().tolist() == [
        ["BTC/USDT", "1m", 3],
        ["ETH/USDT", "1m", 2],
    ]
    assert list(counts["first"].dt.minute) == [0, 7]
    assert list(counts["last"].dt.minute) == [2, 8]
    assert count_candles(conn, **{**WINDOW, "exchange": "none"}).empty


@pytest.mark.parametrize("stored", [0, 5], ids=["by COPY", "by merge"])
@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("high", np.nan, "candles_price_finite"),
        ("low", -1.0, "candles_price_positive"),
        ("volume", np.inf, "candles_volume_finite"),
        ("source", "guess", "candles_source_known"),
    ],
)
def test_one_bad_row_stores_nothing_and_names_the_constraint(
    conn, stored, column, value, constraint
) -> None:
    upsert_candles(conn, candles(["BTC/USDT"], minutes=stored), **WINDOW)
    before = rows(conn)
    bad = candles(SYMBOLS, minutes=1_000).astype({"source": "str"})
    bad.loc[2_500, column] = value
    with pytest.raises(DatabaseError, match=constraint) as refused:
        upsert_candles(conn, bad, **WINDOW)
    assert "3,000 candles of 'binance'" in str(refused.value)
    assert not refused.value.rerun_helps
    assert rows(conn) == before
    assert upsert_candles(conn, candles(SYMBOLS), **WINDOW).inserted > 0  # the connection lives


def test_a_frame_that_is_not_one_partition_is_refused_before_it_is_sent(conn) -> None:
    """Each of these is a mistake of the caller that the table itself could not see."""
    good = candles(SYMBOLS)
    late = good.assign(open_time=good["open_time"] + pd.Timedelta(days=1))
    far = good.assign(
        open_time=pd.Series(np.full(len(good), 10**15, "datetime64[ms]")).dt.tz_localize("UTC")
    )
    refused = {
        "comes twice": pd.concat([good, changed(good.iloc[:1], [0])]),
        "leave the window": late,
        "leave the window .*2024-03-09": far,
        "open_time is empty in 1": good.assign(open_time=good["open_time"].where(good.index != 4)),
        "symbol is empty in 1": good.assign(symbol=good["symbol"].where(good.index != 4)),
        "1 candles are not final": good.assign(final=good.index != 4),
        "not text PostgreSQL can hold": good.assign(run_id="a\0b"),
    }
    for words, frame in refused.items():
        with pytest.raises(DatabaseError, match=words) as error:
            upsert_candles(conn, frame, **WINDOW)
        assert not error.value.rerun_helps
    assert rows(conn) == []


def test_older_servers_tell_new_rows_from_changed_ones_too(conn, monkeypatch) -> None:
    """RETURNING old came with PostgreSQL 18; before, xmax tells."""
    statement = partial(candle_writer._merge_statement, server_version=170_000)
    monkeypatch.setattr(candle_writer, "_merge_statement", lambda server_version: statement())
    frame = candles(SYMBOLS, minutes=4)
    upsert_candles(conn, frame.iloc[:6], **WINDOW)
    result = upsert_candles(conn, changed(frame, [0, 1]), **WINDOW)
    assert result == WriteResult(inserted=6, changed=2, unchanged=4)


@pytest.mark.parametrize("database_url", ["timescaledb"], indirect=True)
def test_a_later_write_reads_only_its_own_partition(conn) -> None:
    """Unbounded, the anti-join of 72,000 rows took 9.5 s on 20 million rows; bounded, 50 ms."""
    day = timedelta(days=1)
    for month in range(4):
        start = START + month * 40 * day
        moved = candles(SYMBOLS).assign(
            open_time=lambda frame, by=start - START: frame["open_time"] + by
        )
        upsert_candles(conn, moved, **{**WINDOW, "start": start, "end": start + day})
    scans = (
        "SELECT relname, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_all_tables"
        " WHERE relname LIKE '\\_hyper\\_%%' ORDER BY relname"
    )

    def scanned() -> dict[str, int]:
        conn.execute("SELECT pg_stat_force_next_flush()")
        conn.execute("SELECT pg_stat_clear_snapshot()")
        return dict(rows(conn, scans))

    before = scanned()
    upsert_candles(conn, candles(SYMBOLS, seed=3), **WINDOW)
    after = scanned()
    assert len(before) >= 4
    assert sum(after[chunk] != before[chunk] for chunk in before) == 1


def test_the_newest_candle_of_every_series_is_one_probe_away(conn) -> None:
    """``DISTINCT ON`` over everything took 14 s: the series are known by themselves."""
    frame = candles(["B/USDT", "A/USDT"], minutes=5)
    upsert_candles(conn, frame, **WINDOW)
    upsert_candles(conn, frame, **{**WINDOW, "exchange": "another"})
    rows = conn.execute(
        "SELECT exchange, symbol, open_time, close FROM latest_candles ORDER BY 1, 2"
    ).fetchall()
    newest = frame.sort_values("open_time").groupby("symbol", observed=True).last()
    expected = [
        (exchange, symbol, newest["open_time"][symbol], newest["close"][symbol])
        for exchange in sorted({"another", WINDOW["exchange"]})
        for symbol in ("A/USDT", "B/USDT")
    ]
    assert rows == expected
