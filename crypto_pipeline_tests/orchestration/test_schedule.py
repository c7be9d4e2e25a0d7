"""The minute schedule: which runs it asks for, minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, SKIPPED_TAG
from crypto_pipeline.settings import CONFIG, HOME, read_settings

PIPELINE = """
exchanges:
  binance: {symbols: ["BTC/USDT"], start: 2024-01-01}
  kraken: {symbols: ["BTC/USD"], start: 2024-01-01}
"""

Tick = Callable[[datetime], list[dg.RunRequest | dg.SkipReason]]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def tick(tmp_path: Path, instance: dg.DagsterInstance) -> Tick:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    settings = read_settings({CONFIG: str(tmp_path / "pipeline.yaml"), HOME: str(tmp_path)})
    schedule = build_defs(settings=settings).resolve_schedule_def("realtime_ohlcv")

    def evaluate(time: datetime) -> list[dg.RunRequest | dg.SkipReason]:
        with dg.build_schedule_context(instance=instance, scheduled_execution_time=time) as context:
            return list(schedule(context))

    return evaluate


def keys(requests: list[Any]) -> list[str]:
    return [str(request.partition_key) for request in requests]


def test_one_run_an_exchange_for_today_with_a_run_key_of_its_minute(tick: Tick) -> None:
    """The daemon may evaluate a minute twice; the run key makes the second one nothing."""
    noon = datetime(2024, 3, 15, 12, 34, tzinfo=UTC)
    requests = tick(noon)
    assert keys(requests) == ["2024-03-15|binance", "2024-03-15|kraken"]
    run_keys = [request.run_key for request in requests]
    assert len(set(run_keys)) == 2
    assert run_keys == [request.run_key for request in tick(noon)]
    assert set(run_keys).isdisjoint(request.run_key for request in tick(noon.replace(minute=35)))


BOTH_TODAY = ["2024-03-15|binance", "2024-03-15|kraken"]


@pytest.mark.parametrize("minute", range(5))
def test_yesterdays_last_candles_are_read_again_like_any_others(tick: Tick, minute: int) -> None:
    """23:59 closes at midnight, and a correction of 23:58 that comes at 00:01 is yesterday's, too."""
    requests = keys(tick(datetime(2024, 3, 15, 0, minute, tzinfo=UTC)))
    assert sorted(requests) == ["2024-03-14|binance", "2024-03-14|kraken", *BOTH_TODAY]


def test_what_yesterday_still_lacks_is_left_to_the_sensor(tick: Tick) -> None:
    """Once its last candles were read four times, the minute is today's alone."""
    assert keys(tick(datetime(2024, 3, 15, 0, 5, tzinfo=UTC))) == BOTH_TODAY


def test_an_exchange_whose_last_run_goes_on_is_skipped_with_a_reason(
    tick: Tick, instance: dg.DagsterInstance
) -> None:
    """A slow exchange must not pile up runs, and the others must not wait for it."""
    noon = datetime(2024, 3, 15, 12, 34, tzinfo=UTC)
    run = instance.add_run(
        dg.DagsterRun(
            job_name="ohlcv_job", status=dg.DagsterRunStatus.STARTED, tags={EXCHANGE_TAG: "binance"}
        )
    )
    assert keys(tick(noon)) == ["2024-03-15|kraken"]
    (record,) = instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    assert record.dagster_run.tags[SKIPPED_TAG] == "2024-03-15 12:34Z: this run still went on"
    instance.add_run(
        dg.DagsterRun(
            job_name="ohlcv_job", status=dg.DagsterRunStatus.STARTING, tags={EXCHANGE_TAG: "kraken"}
        )
    )
    (skipped,) = tick(noon)
    assert isinstance(skipped, dg.SkipReason)
    assert run.run_id in str(skipped.skip_message)
    assert "kraken" in str(skipped.skip_message)


def test_nothing_is_asked_for_before_an_exchanges_first_day(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    """Its partition does not exist then: each tick failed, with all other exchanges' runs."""
    first = datetime.now(UTC).date() + timedelta(days=2)
    (tmp_path / "pipeline.yaml").write_text(PIPELINE.replace("2024-01-01", f"{first}"))
    settings = read_settings({CONFIG: str(tmp_path / "pipeline.yaml"), HOME: str(tmp_path)})
    definitions = build_defs(settings=settings)
    schedule = definitions.resolve_schedule_def("realtime_ohlcv")
    for day, expected in ((first - timedelta(days=1), 0), (first, 2)):
        noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        with dg.build_schedule_context(instance, scheduled_execution_time=noon) as context:
            assert len(list(schedule(context))) == expected
    with dg.build_schedule_context(
        instance,
        scheduled_execution_time=datetime.now(UTC),
        repository_def=definitions.get_repository_def(),
    ) as context:
        assert schedule.evaluate_tick(context).run_requests == []
