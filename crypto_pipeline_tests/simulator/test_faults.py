"""Each fault does to genuine ccxt what the real thing does."""

import json
import time

import ccxt.async_support as ccxt
import pytest
from pydantic import ValidationError

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.simulator import BudgetConfig, Fault
from crypto_pipeline_tests.simulator.conftest import MINUTE, rows_of
from crypto_pipeline_tests.simulator.http_calls import get

SYMBOLS = {"binance": "BTC/USDT", "kraken": "BTC/USD", "coinbaseexchange": "BTC/USD"}
SINCE = MINUTE - 60 * MINUTE_MS
ROWS = 20


def fetch(ask, key: str):
    async def call(exchange):
        exchange.set_markets(MARKETS[key] if key in MARKETS else await exchange.load_markets())
        MARKETS[key] = list(exchange.markets.values())
        return await exchange.fetch_ohlcv(SYMBOLS[key], "1m", SINCE, ROWS)

    return ask(key, call)


MARKETS: dict[str, list] = {}


@pytest.fixture(params=SYMBOLS)
def key(request, ask) -> str:
    fetch(ask, request.param)  # markets are loaded before the faults
    return request.param


def truth(simulator, key: str) -> list[list[float]]:
    until = SINCE + ROWS * MINUTE_MS
    return rows_of(simulator, key, SYMBOLS[key], "1m", SINCE, until)


@pytest.mark.parametrize(
    "fault",
    [
        {"act": "body", "body": "html"},
        {"act": "body", "body": "null"},
        {"act": "body", "body": "empty"},
        {"act": "no_content"},
        {"act": "cut_json"},
        {"act": "cut_gzip"},
        {"act": "status", "status": 523},
    ],
    ids=lambda fault: " ".join(map(str, fault.values())),
)
def test_ccxt_takes_soft_failures_for_no_candles(ask, simulator, key, fault) -> None:
    """Fact 1 of the design: an empty list never proves that there were no trades."""
    simulator.control.add_fault(**fault, endpoint="candles")
    assert fetch(ask, key) == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"act": "status", "status": 503, "body": "html"}, ccxt.ExchangeNotAvailable),
        ({"act": "status", "status": 451, "body": "blocked"}, ccxt.ExchangeNotAvailable),
        ({"act": "drop"}, ccxt.ExchangeNotAvailable),
        ({"act": "drop_mid_body"}, ccxt.ExchangeError),
    ],
    ids=lambda part: " ".join(map(str, part.values())) if isinstance(part, dict) else part.__name__,
)
def test_hard_failures_raise(ask, simulator, key, fault, error) -> None:
    simulator.control.add_fault(**fault, endpoint="candles")
    with pytest.raises(error):
        fetch(ask, key)


def test_a_rate_limit_answer_carries_its_headers(simulator) -> None:
    simulator.control.add_fault(
        act="status", status=429, headers={"Retry-After": "7"}, body="{}", endpoint="time"
    )
    status, headers, body = get(f"{simulator.urls['coinbaseexchange']}/time")
    assert (status, headers["retry-after"], body) == (429, "7", b"{}")


def test_latency_delays_the_answer(ask, simulator, key) -> None:
    simulator.control.add_fault(act="delay", latency=0.2, endpoint="candles")
    began = time.monotonic()
    assert fetch(ask, key) == truth(simulator, key)
    assert 0.2 <= time.monotonic() - began < 2


def test_kraken_rows_under_another_pair_are_no_candles_for_ccxt(ask, simulator) -> None:
    simulator.control.add_fault(act="wrong_pair", endpoint="candles")
    assert fetch(ask, "kraken") == []


@pytest.mark.parametrize("spoil", ["high_below_low", "negative_price", "zero_price", "revised"])
def test_spoiled_values_reach_the_client(ask, simulator, key, spoil) -> None:
    expected = truth(simulator, key)
    picked = expected[5][0]
    simulator.control.add_fault(act="bad_candles", spoil=spoil, open_times=[int(picked)])
    got = fetch(ask, key)
    assert [row for row in got if row[0] != picked] == [row for row in expected if row[0] != picked]
    (bad,) = (row for row in got if row[0] == picked)
    _, opened, high, low, close, volume = bad
    wrong = {
        "high_below_low": high < low,
        "negative_price": close < 0,
        "zero_price": close == 0,
        "revised": high >= max(opened, close, low) and volume != expected[5][5],
    }
    assert wrong[spoil]


@pytest.mark.parametrize(
    ("spoil", "text"), [("nan_text", '"NaN"'), ("null", "null"), ("text", '"abc"'), ("nan", "NaN")]
)
def test_spoiled_types_stand_in_the_body(simulator, key, spoil, text) -> None:
    simulator.control.add_fault(act="bad_candles", spoil=spoil)
    body = get(simulator.urls[key] + candles_path(key))[2].decode()
    assert body.count(text) == 1
    json.loads(body)  # Python's parser takes NaN


@pytest.mark.parametrize("spoil", ["null_row", "empty_row", "duplicate", "missing"])
def test_rows_are_replaced_doubled_or_left_out(simulator, key, spoil) -> None:
    url = simulator.urls[key] + candles_path(key)
    before = rows_in(get(url)[2])
    simulator.control.add_fault(act="bad_candles", spoil=spoil)
    after = rows_in(get(url)[2])
    middle = len(before) // 2
    expected = {
        "null_row": [[None] * len(before[0])],
        "empty_row": [[]],
        "duplicate": [before[middle]] * 2,
        "missing": [],
    }
    assert after == before[:middle] + expected[spoil] + before[middle + 1 :]


def test_rows_come_from_the_wrong_times(ask, simulator, key) -> None:
    control = simulator.control
    expected = truth(simulator, key)
    for spoil, moved in (("future", DAY_MS), ("off_grid", 7_000)):
        control.clear_faults()
        control.add_fault(act="bad_candles", spoil=spoil, open_times=[int(expected[3][0])])
        times = [row[0] for row in fetch(ask, key)]
        assert any(
            time == expected[3][0] + moved if spoil == "off_grid" else time > MINUTE
            for time in times
        ) or (spoil == "future" and len(times) == ROWS)  # ccxt's limit may cut the last row off
    control.clear_faults()
    control.add_fault(act="bad_candles", spoil="outside")
    body = get(simulator.urls[key] + candles_path(key))[2]
    times = [row[0] for row in rows_in(body)]
    assert max(times) - min(times) > 86_000


def candles_path(key: str) -> str:
    start, end = SINCE // 1_000, SINCE // 1_000 + 19 * 60
    return {
        "binance": f"/api/v3/klines?symbol=BTCUSDT&interval=1m&startTime={SINCE}&limit=20",
        "kraken": f"/0/public/OHLC?pair=XBTUSD&since={start}",
        "coinbaseexchange": f"/products/BTC-USD/candles?granularity=60&start={start}&end={end}",
    }[key]


def rows_in(body: bytes) -> list[list]:
    content = json.loads(body)
    return content if isinstance(content, list) else content["result"]["XXBTZUSD"]


def test_which_requests_a_fault_hits(simulator) -> None:
    control, url = simulator.control, f"{simulator.urls['kraken']}/0/public"

    def statuses(requests: int, path: str = "Time") -> list[int]:
        return [get(f"{url}/{path}")[0] for _ in range(requests)]

    nth = control.add_fault(act="status", status=500, exchange="kraken", endpoint="time", nth=2)
    assert statuses(4) == [200, 500, 200, 200]
    (listed,) = control.faults()
    assert (listed["id"], listed["seen"], listed["acted"]) == (nth, 4, 1)
    control.clear_faults(nth)

    control.add_fault(act="status", status=500, every=3)
    assert statuses(6) == [200, 200, 500] * 2
    control.clear_faults()

    control.add_fault(act="status", status=500, count=2)
    assert statuses(3) == [500, 500, 200]
    control.clear_faults()

    control.add_fault(act="status", status=500, symbol="BTC/USD", params={"interval": "5"})
    pair = "OHLC?pair=XBTUSD"
    assert statuses(1, pair) + statuses(1, f"{pair}&interval=5") == [200, 500]
    assert statuses(1, "OHLC?pair=XBTUSDC&interval=5") == [200]
    control.clear_faults()

    chances = []
    for _ in range(2):
        control.clear_faults()
        control.add_fault(act="status", status=500, probability=0.5, seed=3)
        chances.append(statuses(40))
    assert chances[0] == chances[1]
    assert 8 < chances[0].count(500) < 32


def test_a_budget_answers_429_then_bans(ask, simulator) -> None:
    simulator.control.set_budget(
        "binance", BudgetConfig(weight_per_minute=4, ban_after=1, ban_seconds=90)
    )
    url = simulator.urls["binance"] + candles_path("binance")
    wait_for_a_fresh_minute()
    answers = [get(url) for _ in range(4)]
    assert [answer[0] for answer in answers] == [200, 200, 429, 418]
    assert 1 <= int(answers[2][1]["retry-after"]) <= 60
    assert int(answers[3][1]["retry-after"]) == 91
    assert b'"code":-1003' in answers[2][2]
    assert b"IP banned until" in answers[3][2]
    with pytest.raises(ccxt.DDoSProtection):
        fetch(ask, "binance")
    simulator.control.set_budget("binance", None)
    assert fetch(ask, "binance") == truth(simulator, "binance")


def test_each_exchange_has_its_own_words_for_too_many(simulator) -> None:
    budget = BudgetConfig(weight_per_minute=1)
    wait_for_a_fresh_minute()
    answers = {}
    for key in ("kraken", "coinbaseexchange"):
        simulator.control.set_budget(key, budget)
        get(simulator.urls[key] + candles_path(key))
        status, _, body = get(simulator.urls[key] + candles_path(key))
        answers[key] = (status, json.loads(body))
    assert answers == {
        "kraken": (200, {"error": ["EGeneral:Too many requests"]}),
        "coinbaseexchange": (429, {"message": "Public rate limit exceeded"}),
    }


def wait_for_a_fresh_minute() -> None:
    """Budgets follow real minutes: do not start within the last seconds of one."""
    left = 60 - time.time() % 60
    if left < 3:
        time.sleep(left)


def test_a_fault_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValidationError, match="status goes with"):
        Fault(act="status")
    with pytest.raises(ValidationError, match="spoil goes with"):
        Fault(act="drop", spoil="null")
    with pytest.raises(ValidationError, match="Extra inputs"):
        Fault(act="drop", exchnage="kraken")
