"""A run killed at each of its moments: nothing half-written is visible, and it heals by itself.

Each child is a real process that ends by a real SIGKILL. docs/reliability.md lists what is promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.integration.dying import MOMENTS, DyingRun, stop
from crypto_pipeline_tests.integration.faults import (
    age,
    healed,
    nothing_half_is_visible,
    unfinished,
)
from crypto_pipeline_tests.pipelines import Pipeline

FIRST, LAST, TODAY = date(2024, 3, 13), date(2024, 3, 14), date(2024, 3, 15)
NOW = day_start_ms(TODAY) + 3 * 3_600_000 + 20_000
KILLED = -9

#: Those the ledger says nothing of: the run had not come to saying what it means to do.
UNKNOWN = {"before the ledger knows of it"}
#: The moments of a tick that differ from a backfill's: rows are merged into what is there.
OF_A_TICK = [
    "raw file: written, not in place",
    "in mid COPY",
    "between COPY and commit",
]


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    """One, with two symbols; its time stands where a test puts it."""
    config = {
        "clock": {"frozen_at": NOW},
        "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"]}},
    }
    with running_simulator(SimulatorConfig.parse(config, origin="the test")) as simulator:
        yield simulator


@pytest.fixture
def candles(exchanges: SimulatorHandle, pipeline: Callable[..., Pipeline]) -> Pipeline:
    exchanges.control.reset()
    return pipeline(exchanges, start=FIRST)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_backfill_is_never_half_visible_and_heals_by_itself(
    candles: Pipeline, moment: str
) -> None:
    """The sensor finds what the run did not come to; where it cannot know, Dagster runs it again."""
    killed = DyingRun(candles, f"{FIRST}|binance", f"{LAST}|binance", moment=moment)
    assert killed.wait() == KILLED
    nothing_half_is_visible(candles)
    age(candles)
    if moment in UNKNOWN:
        candles.run(f"{FIRST}|binance", f"{LAST}|binance")  # what run_retries does
    else:
        candles.heal()
    healed(candles, "binance", FIRST, LAST)


@pytest.mark.parametrize("moment", OF_A_TICK)
def test_a_killed_tick_is_made_good_by_the_next_one(candles: Pipeline, moment: str) -> None:
    """Rows of today are there already: they stay as they are until the new ones are whole."""
    candles.tick("binance", f"{TODAY}")
    before = candles.candles()
    candles.simulator.control.set_clock(frozen_at=NOW + 5 * MINUTE_MS)
    tick = DyingRun(candles, f"{TODAY}|binance", moment=moment, tags={EXCHANGE_TAG: "binance"})
    assert tick.wait() == KILLED
    nothing_half_is_visible(candles)
    stored = candles.candles()
    assert len(stored.merge(before)) == len(before)
    assert len(stored) in (len(before), len(before) + 10)
    age(candles)
    candles.simulator.control.set_clock(frozen_at=NOW + 6 * MINUTE_MS)
    candles.tick("binance", f"{TODAY}")
    healed(candles, "binance", TODAY, TODAY)


def test_a_run_killed_in_mid_write_leaves_a_file_that_the_next_write_removes(
    candles: Pipeline,
) -> None:
    """``.candles.parquet.….tmp`` of killed runs stayed for ever."""
    run = DyingRun(candles, f"{LAST}|binance", moment="raw file: begun")
    assert run.wait() == KILLED
    assert len(unfinished(candles)) == 1
    age(candles)
    candles.run(f"{LAST}|binance")
    assert unfinished(candles) == []


@pytest.mark.parametrize("moment", ["between two answers", "before COPY"])
def test_a_run_that_was_stopped_and_goes_on_replaces_nothing_newer(
    candles: Pipeline, moment: str
) -> None:
    """SIGSTOP; another run of the same partition passes it; SIGCONT. The older answers are older."""
    stopped = DyingRun(candles, f"{TODAY}|binance", moment=moment, deed=stop)
    stopped.wait_stopped()
    candles.simulator.control.set_clock(frozen_at=NOW + 5 * MINUTE_MS)
    if moment == "before COPY":  # it holds the partition's lock: whoever wants to store waits
        tick = DyingRun(candles, f"{TODAY}|binance", tags={EXCHANGE_TAG: "binance"})
        stopped.go_on()
        assert (stopped.wait(), tick.wait()) == (0, 0)
    else:
        candles.tick("binance", f"{TODAY}")
        stopped.go_on()
        assert stopped.wait() == 0
    healed(candles, "binance", TODAY, TODAY)


@pytest.mark.parametrize(
    "second",
    [{EXCHANGE_TAG: "binance"}, {}],
    ids=["a tick and a backfill", "two backfills"],
)
def test_runs_on_the_same_partitions_at_once_lose_nothing_of_each_other(
    candles: Pipeline, second: dict[str, str]
) -> None:
    """Nor wait for each other in a circle, nor ask for the same twice but for today's open end."""
    runs = [
        DyingRun(candles, f"{LAST}|binance", f"{TODAY}|binance"),
        DyingRun(candles, f"{TODAY}|binance", tags=second)
        if second
        else DyingRun(candles, f"{LAST}|binance", f"{TODAY}|binance"),
    ]
    assert [run.wait() for run in runs] == [0, 0]
    healed(candles, "binance", LAST, TODAY)
    asked = len(candles.simulator.control.arrivals(endpoint="candles"))
    fewest = 2 * -(-(DAY_MS + NOW - day_start_ms(TODAY)) // (1_000 * MINUTE_MS))
    assert asked <= fewest + 2  # of each symbol, the candles that are read again
