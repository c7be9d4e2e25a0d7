"""The gap ledger as a resource: after each materialization, what a partition lacks and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

import psycopg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.gaps import Gap, PartitionState
from crypto_pipeline.core.intervals import Interval, Intervals, intersect, union
from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, utc
from crypto_pipeline.corridor.completeness import completeness
from crypto_pipeline.database.gap_reader import gaps, partition_states, stored_runs
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


class Recorded(NamedTuple):
    """What the ledger holds of a partition: its gaps, and when they were found (ms; None if never)."""

    gaps: Sequence[Gap]
    checked_at: int | None


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

    def recorded(
        self, conn: psycopg.Connection, partitions: Sequence[Partition]
    ) -> dict[Partition, Recorded]:
        """What the ledger holds of partitions; days that follow each other are read together.

        Raises:
            DatabaseError: the ledger cannot be read.
        """
        found: dict[Partition, Recorded] = {}
        for exchange, days, (start, end) in _stretches(partitions):
            by_day: defaultdict[date, list[Gap]] = defaultdict(list)
            for gap in gaps(conn, exchange=exchange, start=utc(start), end=utc(end)):
                by_day[day_of(gap.start)].append(gap)
            states = partition_states(conn, exchange=exchange, since=min(days), until=max(days))
            for day in days:
                checked = states[day].checked_at if day in states else None
                found[Partition(exchange, day)] = Recorded(by_day[day], checked)
        return found

    def intend(self, partitions: Sequence[Partition]) -> None:
        """Record the gaps of partitions that nobody has looked at yet, before they are collected.

        So what a run that dies does not come to is known, and found by the sensor that fills gaps.

        Raises:
            DatabaseError: the ledger cannot be read or written; it stands as it was.
            LakeError: the archive cannot be read; the other partitions are recorded.
        """
        days = [partition.day for partition in partitions]
        with self.database.connect() as conn:
            known = {
                exchange: partition_states(
                    conn, exchange=exchange, since=min(days), until=max(days)
                )
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
        for exchange, days, (start, end) in _stretches(partitions):
            series = self.config.exchanges[exchange].series
            stored = stored_runs(
                conn, exchange=exchange, series=series, start=utc(start), end=utc(end)
            )
            for day in days:
                bounds = _bounds(day)
                found[Partition(exchange, day)] = {
                    series: intersect(runs, bounds) for series, runs in stored.items()
                }
        return found


def _stretches(partitions: Sequence[Partition]) -> Iterator[tuple[str, list[date], Interval]]:
    """An exchange, its days that follow each other, and the time they cover; each partition once."""
    for exchange in sorted({partition.exchange for partition in partitions}):
        days = sorted({day for owner, day in partitions if owner == exchange})
        for stretch in union(map(_bounds, days)):
            yield exchange, [day for day in days if day_start_ms(day) in stretch], stretch


def _bounds(day: date) -> Interval:
    return Interval(day_start_ms(day), day_start_ms(day) + DAY_MS)
