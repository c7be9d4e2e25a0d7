"""The request budget as the exchange sees it: real processes, and what arrives of theirs, and when.

Twenty requests a second are allowed; the budget spaces them by 52 ms (it uses no more than 96 %), so
"never more than 21 in any one second" holds as long as none arrives 90 ms later than others.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.askers import FIRST, askers, keep_to, pipeline_config
from crypto_pipeline_tests.integration.deployment_model import Deployment, loaded
from crypto_pipeline_tests.pipelines import Pipeline

SYMBOLS = [f"{base}/USDT" for base in ("BTC", "ETH", "SOL", "XRP", "ADA", "DOT")]
SECOND = 1_000_000_000
#: A request on its way when the exchange refuses another one, and the refusal on its way to us.
UNDER_WAY = SECOND // 4


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorHandle]:
    config = {"exchanges": {"binance": {"symbols": SYMBOLS, "latency": 0.01}}}
    with running_simulator(SimulatorConfig.parse(config, origin="the test")) as simulator:
        yield simulator


@pytest.fixture
def simulator(process: SimulatorHandle) -> SimulatorHandle:
    process.control.reset()
    return process


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


def backfills(number: int, seconds: float) -> list[dict[str, Any]]:
    """Each asks for a symbol of its own."""
    return [{"does": "ask", "symbol": symbol, "seconds": seconds} for symbol in SYMBOLS[:number]]


def arrived(simulator: SimulatorHandle, since: int = 0, until: int = 2**63) -> list[int]:
    log = simulator.control.arrivals(endpoint="candles")
    return [one["time_ns"] for one in log if since <= one["time_ns"] < until]


def test_four_processes_keep_to_one_budget(simulator: SimulatorHandle, url: str) -> None:
    """ccxt's own limiter made 40 requests a second of a budget of 20, with two processes."""
    with askers(pipeline_config(simulator, cost_ms=50), url, backfills(4, 11)) as running:
        began = running.go() + SECOND
        results = running.results()
    assert [failure for result in results for failure in result["failures"]] == []
    assert keep_to(arrived(simulator), 20)
    log = simulator.control.arrivals(endpoint="candles")
    shares = Counter(one["symbol"] for one in log if began <= one["time_ns"] < began + 10 * SECOND)
    assert shares.total() >= 0.95 * 200
    assert min(shares[symbol] for symbol in SYMBOLS[:4]) >= shares.total() / 4 / 2
    assert sum(result["requests"] for result in results) == len(simulator.control.arrivals())


def test_a_refusal_of_one_process_stops_all_and_passes(
    simulator: SimulatorHandle, url: str
) -> None:
    """429 with Retry-After 3 to one of four: silence for 3 s, then the rate as before."""
    control = simulator.control
    with askers(pipeline_config(simulator, cost_ms=50), url, backfills(4, 9)) as running:
        running.go()
        time.sleep(2)
        control.add_fault(
            act="status", status=429, headers={"Retry-After": "3"}, symbol=SYMBOLS[0], count=1
        )
        results = running.results()
    (refused,) = [one["time_ns"] for one in control.arrivals() if one["status"] == 429]
    assert arrived(simulator, refused + UNDER_WAY, refused + 3 * SECOND) == []
    after = arrived(simulator, refused + 4 * SECOND, refused + 6 * SECOND)
    assert len(after) >= 0.9 * 40
    assert keep_to(arrived(simulator), 20)
    assert [failure for result in results for failure in result["failures"]] == []
    assert sorted(result["refused"] for result in results) == [0, 0, 0, 1]


def test_a_country_block_of_one_process_stops_all(simulator: SimulatorHandle, url: str) -> None:
    """HTTP 451 once; every process then says the same, and the exchange hears of none of them."""
    control = simulator.control
    with askers(pipeline_config(simulator, cost_ms=50), url, backfills(3, 4)) as running:
        running.go()
        time.sleep(1)
        control.add_fault(act="status", status=451, symbol=SYMBOLS[0], count=1)
        results = running.results()
    (blocked,) = [one["time_ns"] for one in control.arrivals() if one["status"] == 451]
    assert arrived(simulator, blocked + UNDER_WAY) == []
    for result in results:
        assert {failure.partition(":")[0] for failure in result["failures"]} == {"ExchangeBlocked"}
        assert "451" in result["failures"][-1]


def test_minute_runs_go_first(simulator: SimulatorHandle, url: str) -> None:
    """Four processes use all of the budget; each minute run is answered within 2 s all the same.

    That is a property of the budget, not of the machine: at most 0.2 s of places are before it.
    """
    config = pipeline_config(simulator, cost_ms=50)
    minutes = {"does": "minutes", "runs": 10, "symbols": SYMBOLS, "pause": 0.2}
    with askers(config, url, [*backfills(4, 10), minutes]) as running:
        running.go()
        *_, live = running.results()
    assert len(live["first"]) == 10
    assert max(live["first"]) < 2
    assert max(live["whole"]) < 2 + 0.05 * len(SYMBOLS)
    assert keep_to(arrived(simulator), 20)


@pytest.mark.parametrize("symbols", [SYMBOLS, [*SYMBOLS[:2], "GONE/USDT"]])
def test_sixty_minute_runs_load_the_markets_once(
    simulator: SimulatorHandle, url: str, tmp_path: Path, symbols: list[str]
) -> None:
    """A process a minute that loads them gets its address banned (ccxt issue 14639)."""
    now = day_start_ms(FIRST) + 600 * MINUTE_MS + 5_000
    document = pipeline_config(simulator, cost_ms=1, symbols=symbols)
    simulator.control.set_clock(frozen_at=now)
    simulator.control.set_latency("binance", 0)
    deployment = Deployment(simulator, loaded(document), url, tmp_path, now)
    deployment.tick()
    simulator.control.reset()
    for minute in range(1, 61):
        deployment.at(now + minute * MINUTE_MS)
        deployment.tick()
    asked = Counter(one["endpoint"] for one in simulator.control.arrivals())
    listed = [symbol for symbol in symbols if symbol in SYMBOLS]
    # One that is not listed is looked for again after ten minutes.
    allowed = 0 if listed == symbols else 6
    assert asked["candles"] == 60 * len(listed)
    assert asked["markets"] <= allowed
    assert asked.keys() <= {"candles", "markets"}


def test_a_run_shows_what_the_budget_did(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """On the partition's page: requests, seconds waited, refusals."""
    simulator.control.set_clock(starts_at=day_start_ms(FIRST) + 2 * 86_400_000)
    ccxt = {**simulator.ccxt_config("binance"), "enableRateLimit": True}
    candles = pipeline(
        simulator, start=FIRST, exchanges={"binance": {"ccxt": ccxt, "habits": {"cost_ms": 50}}}
    )
    simulator.control.add_fault(act="status", status=429, endpoint="candles", count=1)
    result = candles.run(f"{FIRST}|binance")
    (event,) = [
        event for event in result.get_asset_materialization_events()
        if event.asset_key.to_user_string() == "raw_ohlcv"
    ]  # fmt: skip
    shown = {name: value.value for name, value in event.materialization.metadata.items()}
    arrivals = simulator.control.arrivals()
    assert shown["budget: requests"] == len(arrivals)
    assert shown["budget: refused"] == 1
    assert shown["budget: waited seconds"] > 1
    assert shown["requests"] == len(SYMBOLS) * 2, "what else is on the page stays"
    (row,) = candles.rows("SELECT requests, refused, bans, waited_seconds FROM request_budgets")
    assert row[:3] == (len(arrivals), 1, 0)
    assert round(row[3], 3) == shown["budget: waited seconds"]
