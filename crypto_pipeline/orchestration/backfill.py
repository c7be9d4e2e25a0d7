"""Range runs without a daemon, as ``crypto-pipeline backfill`` has them.

Each run covers as many partitions as a backfill launched in the UI gives one, and is recorded on the
Dagster instance. The process around it is :mod:`.backfill_process`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from uuid import uuid4

import dagster as dg

from crypto_pipeline.errors import ConfigError
from crypto_pipeline.orchestration.ahead import nothing_more
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.checks import CHECKS
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.processes import Interrupts
from crypto_pipeline.orchestration.tags import AGAIN_TAG, RANGE_END, RANGE_START
from crypto_pipeline.orchestration.workers import held_lock
from crypto_pipeline.plaintext import shown
from crypto_pipeline.settings import read_settings


class _Stopped(Exception):
    """A signal asked us to end."""


def main(arguments: Sequence[str]) -> int:
    """Run the ranges; 0 if every partition is complete, 128 + n if signal n ended it."""
    exchange, start, end = arguments[0], *map(date.fromisoformat, arguments[1:])
    today = datetime.now(UTC).date()
    if end > today:
        raise ConfigError(f"{end} has not come yet: today is {today} (UTC).")
    config = read_settings().load_config().pipeline
    partitions = [Partition(exchange, start + timedelta(n)) for n in range((end - start).days + 1)]
    definitions = build_defs(loggers={"progress": dg.LoggerDefinition(_progress)})
    with Interrupts() as interrupts, dg.DagsterInstance.get() as instance:
        runs = _Runs(
            definitions.resolve_job_def(OHLCV_JOB),
            instance,
            interrupts,
            size=config.backfill.partitions_per_run,
        )
        try:
            incomplete = runs.over(partitions)
            if incomplete:
                # What stands beside a range proves its first and last minutes; what failed may pass.
                say(f"Asking again for what {len(incomplete)} partitions lack.")
                again = [partition for partition in partitions if partition.key in incomplete]
                incomplete = runs.over(again, {AGAIN_TAG: "true"})
        except (KeyboardInterrupt, _Stopped):
            say("Interrupted. What was stored stays; the same command goes on from there.")
            return 128 + (interrupts.number or signal.SIGINT)
    for key, reason in incomplete.items():
        say(f"{key} is not complete: {reason}")
    complete = len(partitions) - len(incomplete)
    say(f"{complete} of {len(partitions)} partitions are complete.")
    return 1 if incomplete else 0


@dataclass(frozen=True)
class _Runs:
    """Range runs of a job, of at most ``size`` days on end."""

    job: dg.JobDefinition
    instance: dg.DagsterInstance
    interrupts: Interrupts
    size: int

    def over(
        self, partitions: Sequence[Partition], tags: Mapping[str, str] = MappingProxyType({})
    ) -> dict[str, str]:
        """What is incomplete after runs over the partitions, and why.

        Raises:
            _Stopped: in a run, which has ended.
        """
        incomplete: dict[str, str] = {}
        done = 0
        while done < len(partitions):
            part = [partitions[done]]
            while (
                len(part) < self.size
                and done + len(part) < len(partitions)
                and partitions[done + len(part)].day == part[-1].day + timedelta(days=1)
            ):
                part.append(partitions[done + len(part)])
            done += len(part)
            say(f"{part[0].key} to {part[-1].key} ({done} of {len(partitions)} days) …")
            result = self._run({RANGE_START: part[0].key, RANGE_END: part[-1].key, **tags})
            incomplete |= dict(_incomplete(result, part))
        return incomplete

    def _run(self, tags: Mapping[str, str]) -> dg.ExecuteInProcessResult:
        run_id = str(uuid4())
        with held_lock(self.instance, run_id):
            try:
                result = self.job.execute_in_process(
                    instance=self.instance,
                    run_id=run_id,
                    run_config={"loggers": {"progress": {"config": {}}}},
                    tags=dict(tags),
                    raise_on_error=False,
                )
            except KeyboardInterrupt:  # before or after Dagster's own handlers
                run = self.instance.get_run_by_id(run_id)
                if run is not None and not run.is_finished:
                    self.instance.report_run_canceled(run)
                raise
            finally:
                nothing_more()
        if self.interrupts.number is not None:
            raise _Stopped
        return result


def _incomplete(
    result: dg.ExecuteInProcessResult, partitions: Sequence[Partition]
) -> Iterator[tuple[str, str]]:
    """Partitions that a run did not store, or that a check refuses, and why."""
    stored = {
        event.partition
        for event in result.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("timescale_candles")
    }
    judged: dict[str | None, set[str]] = {}
    refused: dict[str | None, str] = {}
    for check in result.get_asset_check_evaluations():
        judged.setdefault(check.partition, set()).add(check.check_name)
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
            refused[check.partition] = f"{check.check_name}: {check.description}"
    for partition in partitions:
        missing = CHECKS - judged.get(partition.key, set())
        if partition.key not in stored:
            yield partition.key, f"run {result.run_id} failed"
        elif partition.key in refused:
            yield partition.key, refused[partition.key]
        elif missing:
            yield partition.key, f"run {result.run_id} did not judge {', '.join(sorted(missing))}"


def _progress(context: dg.InitLoggerContext) -> logging.Logger:
    """A logger for terminals, without Dagster's own events."""
    del context
    logger = logging.getLogger("crypto_pipeline.progress")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain())
    handler.addFilter(lambda record: not _meta(record).get("dagster_event"))
    logger.handlers = [handler]  # Dagster asks for the logger more than once
    return logger


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"  {shown(str(_meta(record).get('orig_message', record.getMessage())))}"


def _meta(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, "dagster_meta", None) or {}


def say(text: str) -> None:
    """A line for the user's terminal."""
    sys.stderr.write(f"{shown(text)}\n")
    sys.stderr.flush()
