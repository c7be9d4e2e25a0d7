"""Raw partition → conforming candles, while the partition's lock is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from crypto_pipeline.core.validation import Validation, validate
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline.lake.zones import PartitionLock, RawPartition, RawZone
from crypto_pipeline.orchestration.frames import Given, Giver
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import DatabaseResource, LakeResource


@dataclass(frozen=True)
class Validated:
    """A partition, the verdict on it, and its conforming candles as they are given on."""

    raw: RawPartition
    verdict: Validation
    given: Given


@contextmanager
def validating(lake: LakeResource, database: DatabaseResource) -> Iterator[Giver]:
    """What gives each partition's conforming candles, while its lock is held."""
    zone = lake.raw()
    with database.connect() as conn, database.raw_locks() as lock:

        @contextmanager
        def give(partition: Partition) -> Iterator[Given]:
            with validated(partition, zone, conn, lock) as found:
                yield found.given

        yield give


@contextmanager
def validated(
    partition: Partition,
    zone: RawZone,
    conn: psycopg.Connection,
    lock: PartitionLock,
    *,
    known: RawPartition | None = None,
) -> Iterator[Validated]:
    """A partition's verdict, what was refused recorded; its lock is held.

    ``known`` spares reading it, if it is what the file holds still.
    """
    # Held until the file is written: an older look must not replace a newer one's.
    with lock(*partition) as still_ours:
        raw = known if known and _stands(known, zone, partition) else zone.read(*partition)
        verdict = validate(raw.observations, day=partition.day)
        record_rejected(
            conn, verdict.rejected, exchange=partition.exchange, partition_date=partition.day
        )
        facts = {
            "rejected": len(verdict.rejected),
            **{f"rejected: {rule}": n for rule, n in verdict.counts.items()},
        }
        last_check = still_ours or (lambda: None)
        yield Validated(raw, verdict, Given(verdict.candles, facts, last_check))


def _stands(known: RawPartition, zone: RawZone, partition: Partition) -> bool:
    return known.version is not None and known.version == zone.version(*partition)
