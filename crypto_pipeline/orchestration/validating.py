"""Raw partition → conforming candles, while the partition's lock is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from crypto_pipeline.core.validation import Validation, validate
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline.lake.storage import LastCheck
from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration.frames import Given, Giver
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import DatabaseResource, LakeResource


@contextmanager
def validating(lake: LakeResource, database: DatabaseResource) -> Iterator[Giver]:
    """What gives each partition's conforming candles, while its lock is held."""
    zone = lake.raw()
    with database.connect() as conn, database.raw_locks() as lock:

        @contextmanager
        def give(partition: Partition) -> Iterator[Given]:
            # Held until the file is written: an older look must not replace a newer one's.
            with lock(*partition) as still_ours:
                yield validated(partition, zone.read(*partition), conn, still_ours)[1]

        yield give


def validated(
    partition: Partition, raw: RawPartition, conn: psycopg.Connection, still_ours: LastCheck
) -> tuple[Validation, Given]:
    """The verdict on a partition, what was refused recorded; and its candles, to be given on."""
    verdict = validate(raw.observations, day=partition.day)
    record_rejected(
        conn, verdict.rejected, exchange=partition.exchange, partition_date=partition.day
    )
    facts = {
        "rejected": len(verdict.rejected),
        **{f"rejected: {rule}": n for rule, n in verdict.counts.items()},
    }
    return verdict, Given(verdict.candles, facts, still_ours)
