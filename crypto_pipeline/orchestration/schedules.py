"""The minute schedule. One run an exchange and minute; which partitions, and when to skip."""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, SKIPPED_TAG

#: A run that takes longer is ended by run monitoring, so that a hung one cannot stop the exchange.
LONGEST_RUN_SECONDS: Final = 600

#: A run that has not ended.
UNDER_WAY: Final = [
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
        description="Every minute, for each exchange: today's partition, and yesterday's as long as"
        " its last candles are read again.",
    )
    def realtime_ohlcv(
        context: dg.ScheduleEvaluationContext,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        minute = context.scheduled_execution_time.astimezone(UTC)
        busy = {}
        for exchange in config.exchanges:
            run = _run_under_way(context.instance, exchange)
            if run is not None:
                busy[exchange] = run
                reason = f"{minute:%Y-%m-%d %H:%MZ}: this run still went on"
                context.log.warning(f"{exchange} is skipped at {reason}: {run}.")
                # A tick that asks for other runs can show no skip reason; the run in the way can.
                context.instance.add_run_tags(run, {SKIPPED_TAG: reason})
                continue
            for day in _days(config, exchange, minute):
                yield dg.RunRequest(
                    run_key=f"{exchange} {day} {minute:%Y-%m-%dT%H:%MZ}",
                    partition_key=partition_key(exchange, day),
                    tags={
                        EXCHANGE_TAG: exchange,
                        "dagster/priority": "10",  # before any backfill's runs
                        "dagster/max_runtime": str(LONGEST_RUN_SECONDS),
                        "dagster/max_retries": "0",  # the next minute asks for the same
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
        dg.RunsFilter(statuses=UNDER_WAY, tags={EXCHANGE_TAG: exchange}), limit=1
    )
    return runs[0].dagster_run.run_id if runs else None


def _days(config: PipelineConfig, exchange: str, minute: datetime) -> Iterator[date]:
    """Today, and yesterday while its last candles are read again like any others.

    What yesterday still lacks after that is the business of the sensor that fills gaps.
    """
    today = minute.date()
    yesterday = today - timedelta(days=1)
    passed = (minute - datetime.combine(today, datetime.min.time(), UTC)) // timedelta(minutes=1)
    if yesterday >= config.exchanges[exchange].start and passed <= config.live.reread + 1:
        yield yesterday
    if today >= config.exchanges[exchange].start:
        yield today
