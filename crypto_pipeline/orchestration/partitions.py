"""Partitions: exchange × UTC day, today included.

Keys read ``2024-01-02|binance``. They are never split as strings: :func:`partitions_of` turns
Dagster's keys into :class:`Partition`, and :func:`partition_key` the other way.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Final, NamedTuple

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig

DATE: Final = "date"
EXCHANGE: Final = "exchange"


class Partition(NamedTuple):
    """One exchange's UTC day; sorts by exchange, then day."""

    exchange: str
    day: date

    @property
    def key(self) -> str:
        """Dagster's key of it."""
        return partition_key(self.exchange, self.day)


def candle_partitions(config: PipelineConfig) -> dg.MultiPartitionsDefinition:
    """All partitions the configuration knows, from its first day to today."""
    return dg.MultiPartitionsDefinition(
        {
            DATE: dg.DailyPartitionsDefinition(start_date=config.start.isoformat(), end_offset=1),
            EXCHANGE: dg.StaticPartitionsDefinition(list(config.exchanges)),
        }
    )


def partition_key(exchange: str, day: date) -> str:
    """Dagster's key of an exchange's day."""
    return str(dg.MultiPartitionKey({DATE: day.isoformat(), EXCHANGE: exchange}))


def partitions_of(keys: Iterable[str]) -> list[Partition]:
    """Dagster's multi-partition keys, which come in no order, as sorted partitions."""
    found = []
    for key in keys:
        if not isinstance(key, dg.MultiPartitionKey):
            raise TypeError(f"{key!r} is not a multi-partition key of date and exchange")
        dimensions = key.keys_by_dimension
        found.append(Partition(dimensions[EXCHANGE], date.fromisoformat(dimensions[DATE])))
    return sorted(found)
