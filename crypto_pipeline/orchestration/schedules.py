"""The minute schedule. One run an exchange and minute; which partitions, and when to skip."""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.intervals import subtract
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.errors import LakeError
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.orchestration.resources import LakeResource

EXCHANGE_TAG: Final = "crypto_pipeline/exchange"
#: On a run in whose favour ticks were skipped: the newest such tick.
SKIPPED_TAG: Final = "crypto_pipeline/skipped_tick"

#: A run that takes longer is ended by run monitoring, so that a hung one cannot stop the exchange.
LONGEST_RUN_SECONDS: Final = 600

#: Minutes after midnight in which an unsettled yesterday is asked for each minute; then each tenth.
_EVERY_MINUTE: Final = 60
_THEN_EVERY: Final = 10

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
                reason = f"{minute:%Y-%m-%d %H:%MZ}: this run still went on"
                context.log.warning(f"{exchange} is skipped at {reason}: {run}.")
                # A tick that asks for other runs can show no skip reason; the run in the way can.
                context.instance.add_run_tags(run, {SKIPPED_TAG: reason})
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
    """Today, and yesterday as long as there is something to ask for.

    For the first minutes of a day in any case, since its last candles are read again like any
    others; then while it is not settled, every minute for an hour and every ten after that.
    """
    today = minute.date()
    yesterday = today - timedelta(days=1)
    if yesterday >= config.exchanges[exchange].start:
        passed = (minute - datetime.combine(today, datetime.min.time(), UTC)) // timedelta(
            minutes=1
        )
        due = passed < _EVERY_MINUTE or passed % _THEN_EVERY == 0
        if passed <= config.live.reread + 1 or (
            due and _unsettled(config, exchange, yesterday, lake)
        ):
            yield yesterday
    yield today


def _unsettled(config: PipelineConfig, exchange: str, day: date, lake: LakeResource) -> bool:
    try:
        coverage = lake.raw().read(exchange, day).coverage
    except LakeError:
        return True  # its run will say what is wrong with the file; the others must not wait for it
    whole = (day_start_ms(day), day_start_ms(day) + DAY_MS)
    return any(
        subtract([whole], coverage.of(series).settled)
        for series in config.exchanges[exchange].series
    )
