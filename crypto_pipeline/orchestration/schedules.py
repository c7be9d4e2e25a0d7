"""The minute schedule. One run an exchange and minute; which partitions, and when to skip."""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.intervals import subtract
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.orchestration.resources import LakeResource

EXCHANGE_TAG: Final = "crypto_pipeline/exchange"

#: A run that takes longer is ended by run monitoring, so that a hung one cannot stop the exchange.
LONGEST_RUN_SECONDS: Final = 600

#: How long after midnight the tick still asks for yesterday's last candles.
_AFTER_MIDNIGHT: Final = timedelta(hours=1)

_UNDER_WAY: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def build_schedule(config: PipelineConfig, job: object) -> dg.ScheduleDefinition:
    """The schedule ``realtime_ohlcv``."""

    @dg.schedule(
        name="realtime_ohlcv",
        job=job,  # type: ignore[arg-type]
        cron_schedule="* * * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every minute, for each exchange: today's partition, and yesterday's until its"
        " last candle is final.",
    )
    def realtime_ohlcv(
        context: dg.ScheduleEvaluationContext, lake: dg.ResourceParam[LakeResource]
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        minute = context.scheduled_execution_time.astimezone(UTC)
        busy = {}
        for exchange in config.exchanges:
            run = _run_under_way(context.instance, exchange)
            if run is not None:
                busy[exchange] = run
                context.log.warning(f"{exchange} is skipped: its run {run} still goes on.")
                continue
            for day in _days(config, exchange, minute, lake):
                yield dg.RunRequest(
                    run_key=f"{exchange} {day} {minute:%Y-%m-%dT%H:%MZ}",
                    partition_key=partition_key(exchange, day),
                    tags={
                        EXCHANGE_TAG: exchange,
                        "dagster/priority": "10",  # before any backfill's runs
                        "dagster/max_runtime": str(LONGEST_RUN_SECONDS),
                    },
                )
        if len(busy) == len(config.exchanges):
            yield dg.SkipReason(
                "; ".join(
                    f"{exchange}: its run {run} still goes on" for exchange, run in busy.items()
                )
            )

    return realtime_ohlcv


def _run_under_way(instance: dg.DagsterInstance, exchange: str) -> str | None:
    runs = instance.get_run_records(
        dg.RunsFilter(statuses=_UNDER_WAY, tags={EXCHANGE_TAG: exchange}), limit=1
    )
    return runs[0].dagster_run.run_id if runs else None


def _days(
    config: PipelineConfig, exchange: str, minute: datetime, lake: LakeResource
) -> Iterator[date]:
    """Yesterday while it is not settled in the hour after midnight, and today."""
    today = minute.date()
    yesterday = today - timedelta(days=1)
    fresh = minute - datetime.combine(today, datetime.min.time(), UTC) < _AFTER_MIDNIGHT
    if fresh and yesterday >= config.exchanges[exchange].start:
        coverage = lake.raw().read(exchange, yesterday).coverage
        day = (day_start_ms(yesterday), day_start_ms(yesterday) + DAY_MS)
        if any(
            subtract([day], coverage.of(series).settled)
            for series in config.exchanges[exchange].series
        ):
            yield yesterday
    yield today
