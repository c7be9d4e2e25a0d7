"""A partition whose answers are complete, taken all the way: validated, judged, stored.

The same work as that of the steps after ``raw_ohlcv``, in one go, so that each file is read once less
often. Nothing is stored that the blocking check would refuse.
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
from crypto_pipeline.orchestration.frames import Given
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
    validated_lake: dg.IOManager
    timescale: dg.IOManager
    done: DoneAhead
    judge_raw: RawJudge
    judge_stored: StoredJudge

    def goes_on(self, context: dg.AssetExecutionContext) -> bool:
        """Whether the run goes on with all that this can do, for more than one partition."""
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
        if not isinstance(archive, ValidatedLakeIOManager) or not isinstance(
            table, TimescaleIOManager
        ):
            raise TypeError("IO managers of somebody else's: see goes_on")
        zone = self.lake.raw()
        with self.database.connect() as conn, self.database.raw_locks() as lock:

            def take_on(partition: Partition, known: RawPartition | None) -> None:
                with validated(partition, zone, conn, lock, known=known) as found:
                    facts = archive.store(partition, found.given)

                def stands() -> bool:
                    return zone.version(*partition) == found.raw.version

                def keep(step: str, result: object) -> None:
                    self.done.keep(run_id, step, partition, result, stands)

                keep(RAW_CHECKS, self.judge_raw(partition, found.raw, found.verdict))
                keep(VALIDATED, facts)
                schema = candle_schema(found.given.candles)
                keep(VALIDATED_CHECKS, {"candle_schema": schema})
                if not schema.passed:
                    return
                coverage, candles = found.raw.coverage, found.given.candles
                keep(
                    STORED,
                    table.store(conn, partition, Given(candles), live=False, coverage=coverage),
                )
                keep(STORED_CHECKS, self.judge_stored(partition, conn, coverage, candles))

            yield take_on
