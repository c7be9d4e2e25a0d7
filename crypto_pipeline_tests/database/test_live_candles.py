from __future__ import annotations

import pandas as pd
import pytest

from crypto_pipeline.database.candle_writer import replace_live_candles
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline_tests.database.frames import candles

SYMBOLS = ["BTC/USDT", "ETH/USDT"]


def tick(minute: int, *, second: int = 0, seed: int = 0, run_id: str = "run") -> pd.DataFrame:
    """The forming candle of each symbol, asked for ``second`` seconds after its opening."""
    frame = candles(SYMBOLS, minutes=1, first=minute, seed=seed, run_id=run_id)
    return frame.assign(fetched_at=frame["open_time"] + pd.Timedelta(seconds=second))


def stored(conn) -> list[tuple[object, ...]]:
    query = "SELECT symbol, open_time, volume, run_id FROM live_candles ORDER BY symbol"
    return conn.execute(query).fetchall()


def expected(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    return list(
        frame[["symbol", "open_time", "volume", "run_id"]].itertuples(index=False, name=None)
    )


def test_each_tick_replaces_the_forming_candle(conn) -> None:
    for minute, second in [(0, 5), (0, 30), (1, 5), (3, 5)]:
        frame = tick(minute, second=second, seed=10 * minute + second)
        assert replace_live_candles(conn, frame, exchange="binance") == len(SYMBOLS)
        assert stored(conn) == expected(frame)


@pytest.mark.parametrize(("minute", "second"), [(4, 59), (5, 29), (5, 30)])
def test_a_slow_older_run_replaces_nothing(conn, minute, second) -> None:
    newest = tick(5, second=30, run_id="newest")
    replace_live_candles(conn, newest, exchange="binance")
    slow = tick(minute, second=second, seed=1, run_id="slow")
    assert replace_live_candles(conn, slow, exchange="binance") == 0
    assert stored(conn) == expected(newest)


def test_a_late_answer_about_an_older_minute_replaces_nothing(conn) -> None:
    """A stale cache in front of an exchange answers later about an earlier minute."""
    newest = tick(5, second=1)
    replace_live_candles(conn, newest, exchange="binance")
    assert replace_live_candles(conn, tick(4, second=600, seed=1), exchange="binance") == 0
    assert stored(conn) == expected(newest)


def test_of_two_candles_that_can_still_change_the_newer_one_is_live(conn) -> None:
    """Within an exchange's clock margin, the closed minute and the new one are both not final."""
    closed, forming = tick(6, second=60), tick(7, seed=1)
    assert replace_live_candles(conn, pd.concat([forming, closed]), exchange="binance") == 2
    assert stored(conn) == expected(forming)


def test_series_and_exchanges_are_replaced_one_by_one(conn) -> None:
    replace_live_candles(conn, tick(1), exchange="binance")
    replace_live_candles(conn, tick(2), exchange="kraken")
    assert replace_live_candles(conn, tick(2).iloc[:1], exchange="binance") == 1
    query = "SELECT exchange, symbol, extract(minute FROM open_time)::int FROM live_candles"
    assert sorted(conn.execute(query).fetchall()) == [
        ("binance", "BTC/USDT", 2),
        ("binance", "ETH/USDT", 1),
        ("kraken", "BTC/USDT", 2),
        ("kraken", "ETH/USDT", 2),
    ]


def test_nothing_forming_is_no_statement(conn) -> None:
    assert replace_live_candles(conn, tick(0).iloc[:0], exchange="binance") == 0


def test_a_bad_forming_candle_stores_nothing(conn) -> None:
    frame = tick(1)
    frame.loc[1, "high"] = float("nan")
    with pytest.raises(DatabaseError, match="live_candles_price_finite"):
        replace_live_candles(conn, frame, exchange="binance")
    assert stored(conn) == []
