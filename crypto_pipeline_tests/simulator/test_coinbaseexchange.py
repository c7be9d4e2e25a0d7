"""Coinbase Exchange's wire format, seen by genuine ccxt and by plain requests."""

import ccxt.async_support as ccxt
import pytest

from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms, utc
from crypto_pipeline_tests.simulator.conftest import MINUTE, NOW_MS, rows_of
from crypto_pipeline_tests.simulator.http_calls import get, get_json

START = MINUTE - 5_000 * MINUTE_MS


def candles_url(simulator, query: str = "") -> str:
    return f"{simulator.urls['coinbaseexchange']}/products/BTC-USD/candles?granularity=60{query}"


def window(start_ms: int, end_ms: int) -> str:
    return f"&start={utc(start_ms).isoformat()}&end={utc(end_ms).isoformat()}".replace("+", "%2B")


def test_products_load(ask) -> None:
    async def check(exchange):
        await exchange.load_markets()
        assert exchange.market("BTC/USD")["id"] == "BTC-USD"
        assert exchange.market("BTC/USD")["active"]
        return await exchange.fetch_time()

    assert ask("coinbaseexchange", check) == NOW_MS


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "1d"])
def test_fetched_candles_are_the_truth(ask, simulator, timeframe) -> None:
    length = timeframe_ms(timeframe)
    number = 300 if timeframe != "1d" else 20  # a day is built from its minutes
    since = (MINUTE - 2 * number * length) // length * length
    until = since + number * length

    async def fetch(exchange):
        return await exchange.fetch_ohlcv("BTC/USD", timeframe, since, number)

    key = "coinbaseexchange"
    assert ask(key, fetch) == rows_of(simulator, key, "BTC/USD", timeframe, since, until)


def test_rows_come_newest_first_without_quiet_minutes(simulator) -> None:
    rows = get_json(candles_url(simulator, window(START, START + 299 * MINUTE_MS)))
    times = [row[0] for row in rows]
    assert times == sorted(times, reverse=True)
    assert 180 < len(rows) < 240
    assert all(row[1] <= min(row[3:5]) and row[2] >= max(row[3:5]) and row[5] > 0 for row in rows)


def test_more_than_300_buckets_are_refused(simulator) -> None:
    """Seen live: 300 intervals (301 buckets, both ends included) pass, 301 do not."""
    assert get(candles_url(simulator, window(START, START + 300 * MINUTE_MS)))[0] == 200
    status, _, body = get(candles_url(simulator, window(START, START + 301 * MINUTE_MS)))
    assert status == 400
    assert body == (
        b'{"message":"granularity too small for the requested time range. '
        b'Count of aggregations requested exceeds 300"}'
    )


def test_a_start_inside_a_bucket_returns_that_bucket(simulator) -> None:
    traded = rows_of(simulator, "coinbaseexchange", "BTC/USD", "1m", START, START + 600_000)
    first = int(traded[0][0])
    rows = get_json(candles_url(simulator, window(first + 30_000, first + MINUTE_MS)))
    assert rows[-1][0] * 1_000 == first


def test_without_a_window_the_newest_300_come(simulator) -> None:
    newest = get_json(candles_url(simulator))
    assert len(newest) == 300
    assert newest[0][0] * 1_000 >= MINUTE - 5 * MINUTE_MS
    assert get_json(candles_url(simulator, f"&start={START // 1_000}")) == newest


def test_the_forming_row_is_first_once_there_is_a_trade(simulator) -> None:
    url = candles_url(simulator, window(MINUTE - 60 * MINUTE_MS, MINUTE + MINUTE_MS))
    seen = set()
    for second in (0, 59):
        simulator.control.set_clock(frozen_at=MINUTE - 60_000 + second * 1_000)
        rows = get_json(url)
        assert rows[0][0] * 1_000 <= MINUTE - MINUTE_MS
        seen.add(rows[0][0])
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("products/NO-PE/candles", 404, "NotFound"),
        ("products/BTC-USD/nope", 404, "NotFound"),
        ("products/BTC-USD/candles?granularity=420", 400, "Unsupported granularity"),
        ("products/BTC-USD/candles?granularity=7m", 400, "Unsupported granularity"),
        ("products/BTC-USD/candles?start=x&end=y", 400, "Invalid start or end"),
        ("products/BTC-USD/candles?start=60&end=0", 400, "start must be before end"),
    ],
)
def test_errors_are_messages(simulator, path, status, message) -> None:
    got = get(f"{simulator.urls['coinbaseexchange']}/{path}")
    assert (got[0], got[2]) == (status, f'{{"message":"{message}"}}'.encode())


def test_ccxt_maps_the_errors(ask) -> None:
    async def check(exchange):
        with pytest.raises(ccxt.OrderNotFound):  # ccxt's mapping of NotFound
            await exchange.publicGetProductsIdCandles({"id": "NO-PE"})
        with pytest.raises(ccxt.ExchangeError, match="granularity"):
            await exchange.fetch_ohlcv("BTC/USD", "7m")
        with pytest.raises(ccxt.BadSymbol):
            await exchange.fetch_ohlcv("NO/PE")

    ask("coinbaseexchange", check)
