"""What travels between assets: candles of many partitions, a few partitions in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from crypto_pipeline.orchestration.partitions import Partition

#: Adds metadata to one partition's materialization.
Note = Callable[[Partition, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Given:
    """One partition's candles, for as long as what they were made under is held.

    Attributes:
        candles: columns of ``CANDLE_DTYPES``.
        facts: metadata of the partition's materialization.
        last_check: to be called just before they are put in older ones' place; raises if the lock
            under which they were made was lost.
    """

    candles: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)
    last_check: Callable[[], object] = lambda: None


Giver = Callable[[Partition], AbstractContextManager[Given]]


@dataclass(frozen=True)
class PartitionedCandles:
    """Candle frames by partition, produced as they are asked for.

    Attributes:
        partitions: those there are, in order.
        opened: opens what one thread needs to be given partitions.
        note: where an IO manager puts what it did to each partition.
        live: whether the minute schedule collects them, as today's.
    """

    partitions: Sequence[Partition]
    opened: Callable[[], AbstractContextManager[Giver]]
    note: Note = lambda partition, metadata: None
    live: bool = False
