"""Binance's wire format, seen by genuine ccxt and by plain requests."""

from email.utils import parsedate_to_datetime

import ccxt.async_support as ccxt
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, timeframe_ms
from crypto_pipeline_tests.simulator.conftest import MINUTE, NOW_MS, OUTAGE, rows_of
from crypto_pipeline_tests.simulator.http_calls import get, get_json

START = MINUTE - 3 * DAY_MS


def klines(simulator, **params) -> list[list]:
    query = "&".join(f"{name}={value}" for name, value in params.items())
    return get_json(f"{simulator.urls['binance']}/api/v3/klines?symbol=BTCUSDT&interval=1m&{query}")


def test_markets_load_from_the_simulator_alone(ask) -> None:
    """ccxt's binance loads futures too: every URL must lead here, or a test would use the network."""

    async def check(exchange):
        await exchange.load_markets()
        assert set(exchange.markets) == {"BTC/USDT", "ETH/BTC"}
        assert exchange.market("BTC/USDT")["id"] == "BTCUSDT"
        assert exchange.market("BTC/USDT")["active"]
        assert exchange.market("BTC/USDT")["precision"]["price"] == 0.01
        assert all(url.startswith("http://127.0.0.1:") for url in exchange.urls["api"].values())
        return await exchange.fetch_time()

    assert ask("binance", check) == NOW_MS


@pytest.mark.parametrize(("key", "symbol"), [("binance", "ETH/BTC"), ("binanceus", "BTC/USD")])
@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "1d"])
def test_fetched_candles_are_the_truth(ask, simulator, key, symbol, timeframe) -> None:
    length = timeframe_ms(timeframe)
    number = 300 if timeframe != "1d" else 20  # a day is built from its minutes
    since = (MINUTE - 2 * number * length) // length * length
    until = since + number * length

    async def fetch(exchange):
        return await exchange.fetch_ohlcv(
            symbol, timeframe, since, number, {"until": until - length}
        )

    assert ask(key, fetch) == rows_of(simulator, key, symbol, timeframe, since, until)


def test_pages_hold_500_rows_by_default_and_1000_at_most(simulator) -> None:
    assert len(klines(simulator, startTime=START)) == 500
    assert len(klines(simulator, startTime=START, limit=5000)) == 1000
    newest = klines(simulator)
    assert len(newest) == 500
    assert newest[-1][0] == MINUTE


def test_both_ends_are_inclusive_on_the_open_time(simulator) -> None:
    end = START + 4 * MINUTE_MS
    rows = klines(simulator, startTime=START, endTime=end)
    assert [row[0] for row in rows] == list(range(START, end + 1, MINUTE_MS))
    assert klines(simulator, startTime=START + 1, endTime=end - 1) == rows[1:-1]
    assert klines(simulator, endTime=end, limit=5) == rows


def test_a_page_may_span_days(simulator) -> None:
    rows = klines(simulator, startTime=START, limit=1000)
    assert [row[0] for row in rows] == [START + n * MINUTE_MS for n in range(1000)]


def test_the_forming_row_evolves(simulator) -> None:
    seen = []
    for seconds in (5, 30, 59):
        simulator.control.set_clock(frozen_at=MINUTE + seconds * 1000)
        rows = klines(simulator, startTime=MINUTE - MINUTE_MS)
        assert [row[0] for row in rows] == [MINUTE - MINUTE_MS, MINUTE]
        seen.append(rows[-1])
    simulator.control.set_clock(frozen_at=MINUTE + MINUTE_MS)
    final = klines(simulator, startTime=MINUTE, limit=1)[0]
    assert seen[0] != seen[1] != seen[2]
    assert float(seen[0][5]) <= float(seen[1][5]) <= float(seen[2][5]) <= float(final[5])
    assert len({row[1] for row in [*seen[1:], final]}) == 1


def test_nothing_from_the_future_is_served(simulator) -> None:
    assert klines(simulator, startTime=MINUTE + MINUTE_MS) == []


def test_an_outage_is_missing(simulator) -> None:
    rows = klines(simulator, startTime=OUTAGE[0] - MINUTE_MS, endTime=OUTAGE[1])
    assert [row[0] for row in rows] == [OUTAGE[0] - MINUTE_MS, OUTAGE[1]]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("symbol=NOPE&interval=1m", 400, -1121),
        ("symbol=BTCUSDT&interval=7m", 400, -1120),
        ("interval=1m", 400, -1102),
        ("symbol=BTCUSDT&interval=1m&limit=x", 400, -1100),
    ],
)
def test_errors_have_binance_codes(simulator, query, status, code) -> None:
    got = get(f"{simulator.urls['binance']}/api/v3/klines?{query}")
    assert got[0] == status
    assert f'"code":{code}'.encode() in got[2]


def test_ccxt_maps_the_errors(ask) -> None:
    async def check(exchange):
        await exchange.load_markets()
        with pytest.raises(ccxt.BadSymbol):
            await exchange.publicGetKlines({"symbol": "NOPE", "interval": "1m"})
        with pytest.raises(ccxt.BadRequest):
            await exchange.fetch_ohlcv("BTC/USDT", "7m")
        with pytest.raises(ccxt.BadSymbol):
            await exchange.fetch_ohlcv("NO/PE")

    ask("binance", check)


def test_headers_tell_the_weight_used_and_the_simulated_time(simulator) -> None:
    simulator.control.set_clock_offset("binance", 3)
    used = []
    for _ in range(2):
        _, headers, _ = get(f"{simulator.urls['binance']}/api/v3/klines?symbol=BTCUSDT&interval=1m")
        used.append(int(headers["x-mbx-used-weight-1m"]))
    assert used[1] in (2, used[0] + 2)  # a new minute may have begun
    date = parsedate_to_datetime(headers["date"]).timestamp()
    assert date == (NOW_MS + 3_000) // 1_000
