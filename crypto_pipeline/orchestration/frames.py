"""What travels between assets: candles of many partitions, one partition in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from crypto_pipeline.orchestration.partitions import Partition

#: Adds metadata to one partition's materialization.
Note = Callable[[Partition, Mapping[str, Any]], None]


class HeldLock:
    """The lock under which the frame last given was made, for whoever puts it in place."""

    def __init__(self) -> None:
        self._check: Callable[[], None] = lambda: None

    def check_by(self, check: Callable[[], None]) -> None:
        """Another lock is held now."""
        self._check = check

    def check(self) -> None:
        """Raises if it was lost."""
        self._check()


class PartitionedCandles:
    """Candle frames by partition, produced as they are asked for; iterate once.

    Args:
        frames: the partitions and their candles (columns of ``CANDLE_DTYPES``).
        note: where an IO manager puts what it did to each partition.
        live: whether the minute schedule collects them, as today's.
        last_check: to be called just before the frame last given is put in an older one's place.
    """

    def __init__(
        self,
        frames: Iterable[tuple[Partition, pd.DataFrame]],
        *,
        note: Note = lambda partition, metadata: None,
        live: bool = False,
        last_check: Callable[[], None] = lambda: None,
    ) -> None:
        self._frames = frames
        self.last_check = last_check
        self.note = note
        self.live = live

    def __iter__(self) -> Iterator[tuple[Partition, pd.DataFrame]]:
        return iter(self._frames)

    def passed_on(self, *, note: Note, live: bool) -> PartitionedCandles:
        """The same frames, on their way into another asset, which notes what becomes of them."""
        return PartitionedCandles(self._frames, note=note, live=live)
