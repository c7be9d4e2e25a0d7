"""The minute schedule: which runs it asks for, minute by minute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.resources import LakeResource
from crypto_pipeline.orchestration.schedules import EXCHANGE_TAG, SKIPPED_TAG
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
def lake(tmp_path: Path) -> str:
    return str(tmp_path / "lake")


@pytest.fixture
def tick(tmp_path: Path, instance: dg.DagsterInstance, lake: str) -> Tick:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    settings = read_settings({CONFIG: str(tmp_path / "pipeline.yaml"), HOME: str(tmp_path)})
    (schedule,) = build_defs(settings=settings).schedules

    def evaluate(time: datetime) -> list[dg.RunRequest | dg.SkipReason]:
        with dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=time,
            resources={"lake": LakeResource(lake)},
        ) as context:
            return list(schedule(context))

    return evaluate


def keys(requests: list[Any]) -> list[str]:
    return [str(request.partition_key) for request in requests]


def settle(lake: str, exchange: str, symbol: str, until: int) -> None:
    day = date(2024, 3, 14)
    zone = RawZone(LakeStorage(lake), lambda exchange, day: nullcontext())
    settled = SeriesCoverage(settled=(Interval(day_start_ms(day), until),))
    coverage = Coverage({Series(symbol, "1m"): settled})
    zone.update(exchange, day, lambda before: RawPartition(before.observations, coverage))


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


def test_after_midnight_yesterday_is_asked_for_until_its_last_candle_is_final(
    tick: Tick, lake: str
) -> None:
    """23:59 closes at midnight: the tick of 00:00 sees it forming, and nobody else would come back."""
    end = day_start_ms(date(2024, 3, 14)) + DAY_MS
    settle(lake, "binance", "BTC/USDT", end - MINUTE_MS)
    settle(lake, "kraken", "BTC/USD", end)
    later = datetime(2024, 3, 15, 0, 10, tzinfo=UTC)
    assert keys(tick(later)) == ["2024-03-14|binance", *BOTH_TODAY]
    assert keys(tick(later.replace(hour=7, minute=20))) == ["2024-03-14|binance", *BOTH_TODAY]
    assert keys(tick(later.replace(hour=7, minute=21))) == BOTH_TODAY
    settle(lake, "binance", "BTC/USDT", end)
    assert keys(tick(later)) == BOTH_TODAY


def test_yesterdays_last_candles_are_read_again_like_any_others(tick: Tick, lake: str) -> None:
    """A correction of 23:58 that comes at 00:01 belongs to yesterday's partition, settled or not."""
    end = day_start_ms(date(2024, 3, 14)) + DAY_MS
    settle(lake, "binance", "BTC/USDT", end)
    settle(lake, "kraken", "BTC/USD", end)
    requests = keys(tick(datetime(2024, 3, 15, 0, 2, tzinfo=UTC)))
    assert sorted(requests) == ["2024-03-14|binance", "2024-03-14|kraken", *BOTH_TODAY]


def test_a_broken_file_of_one_exchange_does_not_stop_the_others(tick: Tick, lake: str) -> None:
    """The tick of every exchange failed for an hour; its own run says what is wrong with the file."""
    broken = Path(lake) / "raw/exchange=kraken/date=2024-03-14/candles.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not Parquet")
    settle(lake, "binance", "BTC/USDT", day_start_ms(date(2024, 3, 14)) + DAY_MS)
    requests = keys(tick(datetime(2024, 3, 15, 0, 30, tzinfo=UTC)))
    assert requests == ["2024-03-15|binance", "2024-03-14|kraken", "2024-03-15|kraken"]


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
