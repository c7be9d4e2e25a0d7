"""The gap ledger as a resource: after each materialization, what a partition lacks and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

import psycopg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.gaps import Gap, PartitionState
from crypto_pipeline.core.intervals import Interval, Intervals, intersect, union
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc
from crypto_pipeline.corridor.completeness import completeness
from crypto_pipeline.database.gap_reader import partition_states, stored_runs
from crypto_pipeline.database.gap_writer import Found, record_partitions
from crypto_pipeline.errors import LakeError
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import ClockResource, DatabaseResource, LakeResource


class StoredRuns(NamedTuple):
    """What is stored of each series of a partition, and what was asked for it.

    Without ``coverage``, the archive is asked.
    """

    runs: Mapping[Series, Intervals]
    coverage: Coverage | None = None


@dataclass(frozen=True)
class LedgerResource:
    """Finds and records the gaps of partitions, from the archive and the candles that are there."""

    config: PipelineConfig = field(repr=False)
    lake: LakeResource
    database: DatabaseResource
    clock: ClockResource

    def look(
        self,
        partition: Partition,
        coverage: Coverage,
        stored: Mapping[Series, Intervals],
        *,
        now: int,
    ) -> tuple[list[Gap], PartitionState]:
        """The partition's gaps and sums at an instant, given what was asked and what is stored."""
        return completeness(
            self.config.exchanges[partition.exchange],
            partition.day,
            coverage=coverage,
            stored=stored,
            now=now,
            max_lag_seconds=self.config.live.max_lag_seconds,
        )

    def record(
        self,
        conn: psycopg.Connection,
        stored: Mapping[Partition, StoredRuns],
        *,
        live: bool,
    ) -> dict[Partition, PartitionState]:
        """Record the gaps of partitions, given what is stored of each.

        Raises:
            DatabaseError: the ledger cannot be written; of an exchange all is recorded, or nothing.
            LakeError: the archive cannot be read.
        """
        found: dict[str, dict[date, Found]] = {}
        for partition, (runs, coverage) in stored.items():
            each = self._found(partition, runs, coverage)
            found.setdefault(partition.exchange, {})[partition.day] = each
        for exchange, days in found.items():
            record_partitions(conn, exchange=exchange, found=days, live=live)
        return {partition: found[partition.exchange][partition.day].state for partition in stored}

    def intend(self, partitions: Sequence[Partition]) -> None:
        """Record the gaps of partitions that nobody has looked at yet, before they are collected.

        So what a run that dies does not come to is known, and found by the sensor that fills gaps.

        Raises:
            DatabaseError: the ledger cannot be read or written; it stands as it was.
            LakeError: the archive cannot be read; the other partitions are recorded.
        """
        first = min(partition.day for partition in partitions)
        with self.database.connect() as conn:
            known = {
                exchange: partition_states(conn, exchange=exchange, since=first)
                for exchange in {partition.exchange for partition in partitions}
            }
            new = [each for each in partitions if each.day not in known[each.exchange]]
            self._record_all(conn, new, live=False)

    def record_failed(self, partitions: Sequence[Partition], *, live: bool) -> None:
        """Record the gaps of partitions that could not be collected.

        Raises:
            DatabaseError: the ledger cannot be written; it stands as it was.
            LakeError: the archive cannot be read; the other partitions are recorded.
        """
        with self.database.connect() as conn:
            self._record_all(conn, partitions, live=live)

    def _record_all(
        self, conn: psycopg.Connection, partitions: Sequence[Partition], *, live: bool
    ) -> None:
        """By the table itself: what was validated need not have been stored.

        A file that cannot be read costs its own partition's record only.
        """
        found: dict[str, dict[date, Found]] = {}
        unreadable: LakeError | None = None
        stored = self._stored(conn, partitions)
        for partition in partitions:
            try:
                each = self._found(partition, stored[partition])
            except LakeError as error:
                unreadable = unreadable or error
            else:
                found.setdefault(partition.exchange, {})[partition.day] = each
        for exchange, days in found.items():
            record_partitions(conn, exchange=exchange, found=days, live=live)
        if unreadable is not None:
            raise unreadable

    def _found(
        self,
        partition: Partition,
        stored: Mapping[Series, Intervals],
        coverage: Coverage | None = None,
    ) -> Found:
        if coverage is None:
            coverage = self.lake.raw().summary(*partition).coverage
        return Found(*self.look(partition, coverage, stored, now=self.clock.now_ms))

    def _stored(
        self, conn: psycopg.Connection, partitions: Sequence[Partition]
    ) -> dict[Partition, Mapping[Series, Intervals]]:
        """What the table holds of each; days that follow each other are looked at together."""
        found: dict[Partition, Mapping[Series, Intervals]] = {}
        for exchange in {partition.exchange for partition in partitions}:
            bounds = {
                partition: Interval(start, start + DAY_MS)
                for partition in partitions
                if partition.exchange == exchange
                for start in [day_start_ms(partition.day)]
            }
            for start, end in union(bounds.values()):
                stored = stored_runs(
                    conn,
                    exchange=exchange,
                    series=self.config.exchanges[exchange].series,
                    start=utc(start),
                    end=utc(end),
                )
                for partition, day in bounds.items():
                    if start <= day.start < end:
                        found[partition] = {
                            series: intersect(runs, day) for series, runs in stored.items()
                        }
        return found
