"""The job that keeps the history of runs bounded, and its hourly schedule.

What may go, :mod:`.history` knows. The asset ``run_history`` is nothing anybody materializes: the
job reports to it, so that the UI plots how large the history is and what maintenance did.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import logging
import time
from datetime import datetime, timedelta
from typing import Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig, RetentionConfig
from crypto_pipeline.orchestration.failures import told_to_dagster
from crypto_pipeline.orchestration.history import Deleted, History, batches, history_of
from crypto_pipeline.orchestration.resources import ClockResource
from crypto_pipeline.orchestration.schedules import UNDER_WAY

MAINTENANCE_JOB: Final = "maintenance"

RUN_HISTORY: Final = dg.AssetSpec(
    "run_history",
    group_name="maintenance",
    kinds={"postgres"},
    description="Dagster's runs, events, check results and ticks, which the job maintenance keeps"
    " bounded. Each report plots their size and what was deleted.",
)

_BATCH: Final = 250
#: What is left after it, the next run does: a deployment that grew for months is no exception.
_WORKING_SECONDS: Final = 1_200.0
_LONGEST_RUN_SECONDS: Final = 3_600
_TOLD_EVERY: Final = 20


def build_maintenance_job(config: PipelineConfig) -> dg.JobDefinition:
    """The job ``maintenance``."""

    @dg.op(
        config_schema={
            "compact": dg.Field(
                bool,
                default_value=False,
                description="Also give the space of deleted rows back to the disk: once, where the"
                " history had grown without bound. Runs and the UI wait meanwhile, for minutes.",
            )
        },
        description="Delete what is older than pipeline.yaml's retention says, and vacuum.",
    )
    def bound_run_history(
        context: dg.OpExecutionContext, clock: dg.ResourceParam[ClockResource]
    ) -> None:
        with told_to_dagster(), history_of(context.instance) as history:
            if history is None:
                context.log.info("Another maintenance run is at it; this one leaves it to that.")
                return
            report = maintain(
                history,
                config.retention,
                clock.now(),
                log=context.log,
                seconds=_WORKING_SECONDS,
                compact=context.op_config["compact"],
            )
            context.log_event(dg.AssetMaterialization(RUN_HISTORY.key, metadata=report))

    @dg.job(
        name=MAINTENANCE_JOB,
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": str(_LONGEST_RUN_SECONDS)},
        description="Keep the history of runs bounded. The newest state of every partition stays.",
    )
    def maintenance() -> None:
        bound_run_history()

    return maintenance


def build_maintenance_schedule(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """The schedule ``maintenance_hourly``."""

    @dg.schedule(
        name="maintenance_hourly",
        job=job,
        cron_schedule="23 * * * *",  # away from the hour, when timeframes close
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every hour, unless the last maintenance still goes on.",
    )
    def maintenance_hourly(
        context: dg.ScheduleEvaluationContext,
    ) -> dg.RunRequest | dg.SkipReason:
        going_on = context.instance.get_run_records(
            dg.RunsFilter(job_name=MAINTENANCE_JOB, statuses=UNDER_WAY), limit=1
        )
        if going_on:
            return dg.SkipReason(f"run {going_on[0].dagster_run.run_id} still goes on")
        return dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H:%MZ}")

    return maintenance_hourly


def maintain(
    history: History,
    retention: RetentionConfig,
    now: datetime,
    *,
    log: logging.Logger,
    seconds: float,
    compact: bool = False,
) -> dict[str, int | float]:
    """Delete what retention lets go, and report what came of it as metadata.

    Args:
        history: whose lock is held.
        retention: how long runs are remembered.
        now: the end of that time.
        log: progress, in sentences.
        seconds: after them no further batch is begun.
        compact: rewrite the tables, so that they take no more disk than their rows need.

    Raises:
        DatabaseError: the database went away. What was deleted until then is deleted whole.
    """
    began, size_before = time.monotonic(), history.size()
    limits = {
        "minute_runs_before": now - timedelta(days=retention.minute_runs_days),
        "runs_before": now - timedelta(days=retention.runs_days),
    }
    candidates = history.candidates(**limits)
    wanted, deleted = len(candidates.forgettable), Deleted()
    log.info(
        f"{wanted:,} runs are older than {retention.minute_runs_days} days (the minute schedule's)"
        f" or {retention.runs_days} days (all others); {candidates.kept:,} more stay, since they hold"
        " the newest state of a partition or belong to a backfill under way."
    )
    for n, batch in enumerate(batches(candidates.forgettable, _BATCH), start=1):
        if time.monotonic() - began > seconds:
            log.info(f"{wanted - deleted.runs:,} runs are left for the next maintenance.")
            break
        deleted += history.forget(batch)
        if n % _TOLD_EVERY == 0:
            log.info(f"{deleted.runs:,} of {wanted:,} runs deleted …")
    deleted += history.forget_leftovers(before=limits["runs_before"])
    history.vacuum(rewrite=compact)
    size = history.size()
    log.info(
        f"Deleted {deleted.runs:,} runs, {deleted.events:,} events,"
        f" {deleted.check_results:,} check results and {deleted.backfills:,} backfills;"
        f" the history takes {size:,} bytes, {size_before:,} before."
    )
    return {
        "runs deleted": deleted.runs,
        "runs kept for their state": candidates.kept,
        "runs left for the next time": wanted - deleted.runs,
        "runs remembered": history.runs(),
        "events deleted": deleted.events,
        "check results deleted": deleted.check_results,
        "backfills deleted": deleted.backfills,
        "bytes before": size_before,
        "bytes": size,
        "seconds": round(time.monotonic() - began, 2),
    }
