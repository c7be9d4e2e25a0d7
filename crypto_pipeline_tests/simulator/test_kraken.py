"""Kraken's wire format, seen by genuine ccxt and by plain requests."""

import ccxt.async_support as ccxt
import pytest

from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms
from crypto_pipeline_tests.simulator.conftest import MINUTE, NOW_MS, rows_of
from crypto_pipeline_tests.simulator.http_calls import get, get_json


def ohlc(simulator, query: str = "") -> tuple[list[list], int]:
    answer = get_json(f"{simulator.urls['kraken']}/0/public/OHLC?pair=XBTUSD{query}")
    assert answer["error"] == []
    assert set(answer["result"]) == {"XXBTZUSD", "last"}
    return answer["result"]["XXBTZUSD"], answer["result"]["last"]


def test_markets_have_krakens_names(ask) -> None:
    async def check(exchange):
        await exchange.load_markets()
        assert {market["id"]: symbol for symbol, market in exchange.markets.items()} == {
            "XXBTZUSD": "BTC/USD",
            "XBTUSDC": "BTC/USDC",
            "XDGUSD": "DOGE/USD",
        }
        assert exchange.market("BTC/USD")["info"]["wsname"] == "XBT/USD"
        return await exchange.fetch_time()

    assert ask("kraken", check) == NOW_MS // 1_000 * 1_000


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "1d"])
def test_fetched_candles_are_the_truth(ask, simulator, timeframe) -> None:
    length = timeframe_ms(timeframe)
    number = 300 if timeframe != "1d" else 20  # a day is built from its minutes
    since = (MINUTE - 2 * number * length) // length * length
    until = since + number * length

    async def fetch(exchange):
        return await exchange.fetch_ohlcv("BTC/USD", timeframe, since, number)

    assert ask("kraken", fetch) == rows_of(simulator, "kraken", "BTC/USD", timeframe, since, until)


def test_an_old_since_silently_gives_the_newest_720_and_the_forming_row(simulator) -> None:
    newest, last = ohlc(simulator)
    assert len(newest) == 721
    assert newest[-1][0] * 1_000 == MINUTE
    assert last * 1_000 == MINUTE - MINUTE_MS
    old = MINUTE // 1_000 - 2_000 * 60
    assert ohlc(simulator, f"&since={old}") == (newest, last)
    assert ohlc(simulator, "&since=0") == (newest, last)


def test_since_is_exclusive(simulator) -> None:
    since = MINUTE // 1_000 - 600
    assert ohlc(simulator, f"&since={since}")[0][0][0] == since + 60
    assert ohlc(simulator, f"&since={since - 1}")[0][0][0] == since


def test_the_forming_row_comes_whatever_since_says(simulator) -> None:
    rows, last = ohlc(simulator, f"&since={NOW_MS // 1_000}")
    assert [row[0] * 1_000 for row in rows] == [MINUTE]
    assert last * 1_000 == MINUTE - MINUTE_MS


def test_quiet_minutes_are_flat_rows(simulator) -> None:
    rows, _ = ohlc(simulator)
    quiet = [row for row in rows if row[7] == 0]
    assert 150 < len(quiet) < 280
    assert all(len(set(row[1:5])) == 1 and float(row[5]) == float(row[6]) == 0 for row in quiet)
    assert all(
        float(row[3]) <= float(row[5]) <= float(row[2]) for row in rows if row[7]
    )  # the average price


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("OHLC?pair=NOPE", "EQuery:Unknown asset pair"),
        ("OHLC?pair=LTCEUR", "EQuery:Unknown asset pair"),  # delisted
        ("OHLC?pair=XBTUSD&interval=7", "EGeneral:Invalid arguments"),
        ("OHLC?pair=XBTUSD&interval=x", "EGeneral:Invalid arguments"),
        ("OHLC", "EGeneral:Invalid arguments"),
        ("Nope", "EGeneral:Unknown method"),
    ],
)
def test_errors_come_with_status_200(simulator, path, error) -> None:
    status, _, body = get(f"{simulator.urls['kraken']}/0/public/{path}")
    assert status == 200
    assert body == f'{{"error":["{error}"]}}'.encode()


def test_an_unknown_pair_is_a_bare_exchange_error_for_ccxt(ask) -> None:
    """ccxt knows "EQuery:Unknown asset", but matches it exactly: "… asset pair" falls through."""

    async def check(exchange):
        with pytest.raises(ccxt.ExchangeError) as caught:
            await exchange.publicGetOHLC({"pair": "NOPE"})
        assert type(caught.value) is ccxt.ExchangeError
        with pytest.raises(ccxt.BadRequest):
            await exchange.fetch_ohlcv("BTC/USD", "7m")

    ask("kraken", check)


def test_trades_walk_by_cursor_and_add_up_to_the_candles(simulator) -> None:
    url = f"{simulator.urls['kraken']}/0/public/Trades?pair=XBTUSD"
    start = MINUTE - 600 * MINUTE_MS
    cursor, trades, pages = str(start * 1_000_000 - 1), [], 0
    while True:
        result = get_json(f"{url}&since={cursor}")["result"]
        page = result["XXBTZUSD"]
        pages += 1
        trades += page
        if len(page) < 1000:
            break
        cursor = result["last"]
    assert pages > 2
    assert len({trade[6] for trade in trades}) == len(trades)
    assert trades[-1][2] * 1_000 <= NOW_MS
    final = [trade for trade in trades if trade[2] * 1_000 < MINUTE]
    minutes: dict[int, list] = {}
    for trade in final:
        minutes.setdefault(int(trade[2]) // 60 * MINUTE_MS, []).append(trade)
    rows = rows_of(simulator, "kraken", "BTC/USD", "1m", start, MINUTE)
    assert [row[0] for row in rows if row[5] > 0] == list(minutes)
    for time, *prices, volume in rows:
        if volume:
            values = [float(trade[0]) for trade in minutes[time]]
            assert prices == [values[0], max(values), min(values), values[-1]]
            assert round(sum(float(trade[1]) for trade in minutes[time]), 8) == volume


def test_trades_without_since_are_the_newest(ask, simulator) -> None:
    url = f"{simulator.urls['kraken']}/0/public/Trades?pair=XBTUSD&count=3"
    result = get_json(url)["result"]
    assert len(result["XXBTZUSD"]) == 3
    assert MINUTE - 10 * MINUTE_MS < result["XXBTZUSD"][-1][2] * 1_000 <= NOW_MS
    again = get_json(f"{url}&since={result['last']}")["result"]
    assert again == {"XXBTZUSD": [], "last": result["last"]}

    async def fetch(exchange):
        return await exchange.fetch_trades("BTC/USD", MINUTE - 10 * MINUTE_MS)

    assert ask("kraken", fetch)[-1]["timestamp"] == int(result["XXBTZUSD"][-1][2] * 1_000)
