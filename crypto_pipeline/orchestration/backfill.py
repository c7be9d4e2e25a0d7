"""Range runs without a daemon: ``python -m crypto_pipeline.orchestration.backfill KEY START END``.

What ``crypto-pipeline backfill`` runs under the shared environment. Each run covers as many
partitions as a backfill launched in the UI gives one, and is recorded on the Dagster instance.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg

from crypto_pipeline.errors import ConfigError, CryptoPipelineError
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.checks import CHECKS
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.tags import RANGE_END, RANGE_START
from crypto_pipeline.settings import read_settings


def main(arguments: Sequence[str]) -> int:
    """Run the ranges; 0 if every partition is complete."""
    exchange, start, end = arguments[0], *map(date.fromisoformat, arguments[1:])
    today = datetime.now(UTC).date()
    if end > today:
        raise ConfigError(f"{end} has not come yet: today is {today} (UTC).")
    config = read_settings().load_config().pipeline
    days = [start + timedelta(days=n) for n in range((end - start).days + 1)]
    size = config.backfill.partitions_per_run
    definitions = build_defs(loggers={"progress": dg.LoggerDefinition(_progress)})
    job = definitions.resolve_job_def(OHLCV_JOB)
    incomplete: list[str] = []
    with dg.DagsterInstance.get() as instance:
        for position in range(0, len(days), size):
            part = [Partition(exchange, day) for day in days[position : position + size]]
            _say(f"{part[0].key} to {part[-1].key} ({position + len(part)} of {len(days)} days) …")
            result = job.execute_in_process(
                instance=instance,
                run_config={"loggers": {"progress": {"config": {}}}},
                tags={RANGE_START: part[0].key, RANGE_END: part[-1].key},
                raise_on_error=False,
            )
            missing = dict(_incomplete(result, part))
            for key, reason in missing.items():
                _say(f"{key} is not complete: {reason}")
            incomplete += missing
    _say(f"{len(days) - len(incomplete)} of {len(days)} partitions are complete.")
    return 1 if incomplete else 0


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
    logger.addHandler(handler)
    return logger


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"  {_meta(record).get('orig_message', record.getMessage())}"


def _meta(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, "dagster_meta", None) or {}


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CryptoPipelineError as error:
        _say(f"Error: {error}")
        sys.exit(2)
