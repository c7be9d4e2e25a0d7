"""What a run's collection did, partition by partition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

from crypto_pipeline.corridor.requests import FailedRequest
from crypto_pipeline.lake.zones import RawPartition


@dataclass(kw_only=True)
class CollectedDay:
    """What a run did to one partition."""

    requests: int = 0
    rows: int = 0
    observations: int = 0
    failed: list[FailedRequest] = field(default_factory=list)

    @property
    def not_asked(self) -> int:
        """Requests that were left out after others had failed."""
        return sum(not entry.asked for entry in self.failed)


@dataclass
class Collected:
    """What a run did, by partition. ``not_asked``: requests left out after it gave up."""

    days: dict[date, CollectedDay] = field(default_factory=dict)
    failed: list[FailedRequest] = field(default_factory=list)
    answered: int = 0

    @property
    def not_asked(self) -> int:
        """Requests that were left out after others had failed."""
        return sum(not entry.asked for entry in self.failed)


#: Told of a partition that has all that a run asked for it.
OnDay = Callable[[date, CollectedDay, RawPartition | None], None]
