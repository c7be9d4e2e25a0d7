"""How often an exchange is asked for what fails: retries do not multiply, nor outlive a refusal.

Counted where requests arrive, of the real job on a Dagster instance: tenacity's attempts, Dagster's
own retries of steps and runs, and the sensor that fills gaps are all there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
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
        assert asked(candles)["BTC/USDT"] == run
    assert set(candles.candles()["symbol"]) == {"ETH/USDT"}


def test_a_blocked_address_is_told_so_once_a_series(candles: Pipeline) -> None:
    """451 does not pass by asking again; a second run does not even ask once."""
    break_it(candles, BLOCKED)
    assert not candles.run(FIRST, LAST, may_fail=True).success
    before = asked(candles)
    assert max(before.values()) == 1
    result = candles.run(FIRST, LAST, may_fail=True, tags={"crypto_pipeline/again": "true"})
    assert not result.success
    assert asked(candles) == before


def test_a_transient_failure_is_asked_for_as_often_as_configured_and_no_more(
    candles: Pipeline,
) -> None:
    """`attempts` for one request: not times Dagster's retries, nor again by the sensor at once."""
    candles.run(LAST)
    before = asked(candles)
    break_it(candles, DOWN, "BTC/USDT")
    candles.run(LAST.replace("14", "13"), may_fail=True)
    windows = 2  # of a day, with a page of 1,000
    assert asked(candles) - before == {"BTC/USDT": ATTEMPTS * windows, "ETH/USDT": windows}
    after = asked(candles)
    assert candles.heal() == []
    assert asked(candles) == after


def test_a_transient_failure_that_passes_costs_one_request_more(candles: Pipeline) -> None:
    """And no candle."""
    break_it(candles, DOWN | {"count": 1}, "BTC/USDT")
    assert candles.run(FIRST, LAST).success
    assert asked(candles) == {"BTC/USDT": WINDOWS + 1, "ETH/USDT": WINDOWS}
    start = day_start_ms(date(2024, 3, 12))
    assert candles.candles().equals(candles.truth("binance", start, start + 3 * DAY_MS))


def test_dagster_retries_no_step_and_no_run_that_failed(candles: Pipeline) -> None:
    """A step's retries and a run's would each multiply the attempts of its requests."""
    job = candles.definitions.resolve_job_def(OHLCV_JOB)
    assert [node.name for node in job.nodes if node.retry_policy is not None] == []
    assert job.op_retry_policy is None
    instance = yaml.safe_load((Path(__file__).parents[2] / "dagster.yaml").read_text())
    assert instance["run_retries"]["retry_on_asset_or_op_failure"] is False
    break_it(candles, BLOCKED)
    result = candles.run(LAST, may_fail=True)
    kinds = [event.event_type for event in result.all_events]
    assert dg.DagsterEventType.STEP_FAILURE in kinds
    assert dg.DagsterEventType.STEP_UP_FOR_RETRY not in kinds
