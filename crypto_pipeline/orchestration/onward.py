"""A partition whose answers are complete, taken all the way: validated, judged, stored.

The same work as that of the steps after ``raw_ohlcv``, in one go, so that each file is read less often.
Nothing is stored that the blocking check would refuse. The table is looked at for its checks right after
it was stored into, and again when they come if the archive has changed since, as it does where another
run stored something. The ledger hears of a day from its step, as it is done when its run has said so;
a day that is not over is the steps' altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import dagster as dg

from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration.ahead import (
    RAW_CHECKS,
    STORED,
    STORED_CHECKS,
    VALIDATED,
    VALIDATED_CHECKS,
    DoneAhead,
)
from crypto_pipeline.orchestration.io_managers import TimescaleIOManager, ValidatedLakeIOManager
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import DatabaseResource, LakeResource
from crypto_pipeline.orchestration.validating import validated
from crypto_pipeline.orchestration.verdicts_raw import RawJudge, candle_schema
from crypto_pipeline.orchestration.verdicts_stored import StoredJudge

_NEEDED: Final = frozenset({VALIDATED, VALIDATED_CHECKS, STORED})


@dataclass(frozen=True)
class OnwardResource:
    """Takes partitions of a run further than the step that is being executed."""

    lake: LakeResource
    database: DatabaseResource
    validated_lake: ValidatedLakeIOManager
    timescale: TimescaleIOManager
    done: DoneAhead
    judge_raw: RawJudge
    judge_stored: StoredJudge

    def goes_on(self, context: dg.AssetExecutionContext) -> bool:
        """Whether the run goes on with all that this can do, for more than one partition.

        A deployment may have put IO managers of its own in place of ours.
        """
        executed = context.run.step_keys_to_execute
        return (
            len(context.partition_keys) > 1
            and {node.name for node in context.job_def.nodes} >= _NEEDED
            and (executed is None or set(executed) >= _NEEDED)
            and isinstance(self.validated_lake, ValidatedLakeIOManager)
            and isinstance(self.timescale, TimescaleIOManager)
        )

    @contextmanager
    def opened(self, run_id: str) -> Iterator[Callable[[Partition, RawPartition | None], None]]:
        """What takes one partition all the way, and keeps what the run's later steps need of it."""
        archive, table = self.validated_lake, self.timescale
        zone, files = self.lake.raw(), self.lake.validated()
        with self.database.connect() as conn, self.database.raw_locks() as lock:

            def take_on(partition: Partition, known: RawPartition | None) -> None:
                if not self.judge_raw.is_past(partition):
                    return  # what is said of it now is not true of it later
                with lock(*partition) as still_ours:
                    version = zone.version(*partition)
                    current = known is not None and known.version == version is not None
                    raw = known if known and current else zone.read(*partition)
                    verdict, given = validated(partition, raw, conn, still_ours)
                    facts = archive.write(partition, given)
                    versions = version, files.version(*partition)

                def stands() -> bool:  # kept until it is asked: it must hold no frame
                    now = zone.version(*partition), files.version(*partition)
                    return now == versions and None not in versions

                def keep(step: str, result: object) -> None:
                    self.done.keep(run_id, step, partition, result, stands)

                keep(RAW_CHECKS, self.judge_raw(partition, raw, verdict))
                keep(VALIDATED, facts)
                candles = archive.read(partition)  # what the file holds, not what was written to it
                schema = candle_schema(candles)
                keep(VALIDATED_CHECKS, schema)
                if schema.passed:
                    keep(STORED, table.store(conn, partition, candles, coverage=raw.coverage))
                    archived = self.judge_stored.archived(partition, raw.coverage, candles)
                    keep(STORED_CHECKS, (archived, self.judge_stored.seen(partition, conn)))

            yield take_on
