"""A UTC day ends and the next begins: what the minute schedule asks for, carried out minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import dagster as dg
import pandas as pd
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms, utc
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline, results

Simulate = Callable[[SimulatorConfig], SimulatorHandle]
MakePipeline = Callable[..., Pipeline]

LAST = date(2023, 12, 31)
MIDNIGHT = day_start_ms(LAST) + DAY_MS
SYMBOLS = {"binance": "BTC/USDT", "coinbaseexchange": "BTC/USD"}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """What a schedule can be evaluated with: an ephemeral one cannot."""
    with dg.instance_for_test() as instance:
        yield instance


def tick(candles: Pipeline, instance: dg.DagsterInstance, minute: int) -> list[dg.RunRequest]:
    schedule = candles.definitions.resolve_schedule_def("realtime_ohlcv")
    with dg.build_schedule_context(instance, scheduled_execution_time=utc(minute)) as context:
        return [each for each in schedule(context) if isinstance(each, dg.RunRequest)]


@pytest.mark.parametrize("timeframe", ["1m", "1d"])
def test_every_run_around_midnight_succeeds_and_no_candle_is_lost(
    simulate: Simulate, pipeline: MakePipeline, instance: dg.DagsterInstance, timeframe: str
) -> None:
    """A day's first minute has forming candles only, and of 1d there are no others all day long: the
    table's checks failed where no candle is final, so did each exchange's run at each midnight."""
    first = MIDNIGHT - MINUTE_MS
    config = {
        "clock": {"starts_at": first},
        "exchanges": {
            key: {"symbols": [symbol], "quiet_rate": 0} for key, symbol in SYMBOLS.items()
        },
    }
    simulator = simulate(SimulatorConfig.parse(config, origin="the test"))
    candles = pipeline(simulator, start=LAST, timeframes=[timeframe])
    asked = set()
    for minute, second in enumerate([58, 0, 59, 2, 10]):
        opened = first + minute * MINUTE_MS
        simulator.control.set_clock(starts_at=opened + second * 1_000)
        for request in tick(candles, instance, opened):
            asked.add(request.partition_key)
            result = candles.run(str(request.partition_key), may_fail=True, tags=request.tags)
            assert result.success, f"failed: {request.run_key}"
            failed = [key for key, check in results(result).items() if not check.passed]
            assert failed == [], request.run_key
    assert len(asked) == 2 * len(SYMBOLS)
    until = opened if timeframe == "1m" else MIDNIGHT
    truth = [candles.truth(key, day_start_ms(LAST), until, timeframe=timeframe) for key in SYMBOLS]
    pd.testing.assert_frame_equal(
        candles.candles(), pd.concat(truth, ignore_index=True), check_exact=True
    )
