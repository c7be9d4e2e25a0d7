"""How often an exchange is asked for what fails: retries do not multiply, nor outlive a refusal.

Counted where requests arrive, of the real job on a Dagster instance: tenacity's attempts, Dagster's
own retries of steps and runs, and the sensor that fills gaps are all there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

from crypto_pipeline.core.timeframes import day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.pipelines import Pipeline

FIRST, LAST = "2024-03-12|binance", "2024-03-14|binance"
NOW = day_start_ms(date(2024, 3, 15)) + 3 * 3_600_000
ATTEMPTS = 3
#: Three days of 1m are five pages.
WINDOWS = 5
REFUSED = {"act": "status", "status": 400, "body": '{"code": -1121, "msg": "Invalid symbol."}'}
BLOCKED = {"act": "status", "status": 451, "body": '{"code": 0, "msg": "restricted location"}'}
DOWN = {"act": "status", "status": 503}


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorHandle]:
    config = SimulatorConfig.parse(
        {
            "clock": {"starts_at": NOW},
            "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"], "latency": 0.02}},
        },
        origin="the test",
    )
    with running_simulator(config) as handle:
        yield handle


@pytest.fixture
def candles(shared: SimulatorHandle, pipeline: Callable[..., Pipeline]) -> Pipeline:
    shared.control.reset()
    shared.control.set_clock(starts_at=NOW)
    retry = {"attempts": ATTEMPTS, "first_wait_seconds": 0.01, "longest_wait_seconds": 0.02}
    paced = {**shared.ccxt_config("binance"), "enableRateLimit": True}
    return pipeline(shared, exchanges={"binance": {"retry": retry, "ccxt": paced}})


def asked(candles: Pipeline) -> Counter[str]:
    """Requests for candles that arrived so far, by symbol."""
    arrivals = candles.simulator.control.arrivals(endpoint="candles")
    return Counter(arrival["symbol"] for arrival in arrivals)


def break_it(candles: Pipeline, fault: dict[str, Any], symbol: str | None = None) -> None:
    candles.simulator.control.add_fault(endpoint="candles", symbol=symbol, **fault)


def test_a_refused_series_is_asked_for_once_a_run_and_the_others_are_collected(
    candles: Pipeline,
) -> None:
    """Not once a window, nor once for each of the requests that go out at the same time."""
    break_it(candles, REFUSED, "BTC/USDT")
    for run in (1, 2):
        result = candles.run(FIRST, LAST, may_fail=True, tags={"crypto_pipeline/again": "true"})
        assert result.success is (run == 1)  # then nothing is left but what is refused
