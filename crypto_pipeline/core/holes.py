"""Holes: the parts of a partition that were asked for in vain, and how they come together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

from crypto_pipeline.core.intervals import Interval, overlaps, subtract
from crypto_pipeline.core.timeframes import MINUTE_MS

#: So many empty answers are needed before silence counts as one side of a proof.
CONFIRMATIONS: Final = 3

#: Holes asked for often merge where their last requests are no further apart: their number stays
#: small where each minute adds one, and none is asked for much earlier than it would be by itself.
_ABOUT_ONE_TIME_MS: Final = 10 * MINUTE_MS

HoleKind = Literal[
    "failed",  # the request failed
    "silent",  # an answer held candles, but none here
    "empty",  # an answer held no candle of the whole window
    "rejected",  # a row came for it, and broke a rule
]


@dataclass(frozen=True, kw_only=True)
class Hole:
    """A part of a partition that was asked for in vain. Times in ms, our clock for ``at``.

    Attributes:
        kind: what came instead of a candle.
        first_seen: when a part of it was first asked for in vain.
        at: when it was last asked for, all of it.
        attempts: requests since it is of this kind.
        note: the error, or the rule that was broken.
        permanent: the failure is one that asking again does not mend.
    """

    start: int
    end: int
    kind: HoleKind
    first_seen: int
    at: int
    attempts: int = 1
    note: str = ""
    permanent: bool = False

    @property
    def interval(self) -> Interval:
        """The part of the partition it is about."""
        return Interval(self.start, self.end)

    @property
    def confirmed(self) -> bool:
        """Answered, without a candle, often enough to be believed."""
        return self.kind == "silent" or (self.kind == "empty" and self.attempts >= CONFIRMATIONS)

    def within(self, left: Interval) -> Self:
        """The same, about a part of it."""
        if left == self.interval:
            return self
        return replace(self, start=left.start, end=left.end)


def inside(holes: Sequence[Hole], parts: Sequence[Interval]) -> list[Hole]:
    """What of the holes lies in the parts; both are sorted and disjoint."""
    return [
        holes[position].within(left)
        for position, _, left in overlaps([hole.interval for hole in holes], parts)
    ]


def outside(holes: Sequence[Hole], cut: Iterable[tuple[int, int]]) -> list[Hole]:
    """What of the holes, which are sorted and disjoint, the cut leaves."""
    return inside(holes, subtract((hole.interval for hole in holes), cut))


def tidy(holes: Iterable[Hole]) -> tuple[Hole, ...]:
    """Sorted; touching holes that were asked for together, or often and at about one time, are one.

    One hole then says of all its parts when the first was seen, the earliest last request, and the
    most attempts, so that the pauses grow; a silence counts as confirmed only where all of it is.
    """
    tidy: list[Hole] = []
    for hole in sorted(holes, key=lambda h: h.start):
        last = tidy[-1] if tidy else None
        if last is not None and last.end == hole.start and _alike(last, hole):
            tidy[-1] = replace(
                last,
                end=hole.end,
                first_seen=min(last.first_seen, hole.first_seen),
                at=min(last.at, hole.at),
                attempts=max(last.attempts, hole.attempts),
                note=hole.note if hole.at > last.at else last.note,
            )
        else:
            tidy.append(hole)
    return tuple(tidy)


def _alike(one: Hole, other: Hole) -> bool:
    if (one.kind, one.permanent) != (other.kind, other.permanent):
        return False
    together = one.at == other.at
    often = min(one.attempts, other.attempts) >= CONFIRMATIONS
    often &= abs(one.at - other.at) <= _ABOUT_ONE_TIME_MS
    if one.kind == "failed":  # what an error says names the window that was asked for
        return together or often
    # A minute more must not take from those before it what they were asked for already.
    return one.note == other.note and (often or (together and one.attempts == other.attempts))


def compact(hole: Hole) -> dict[str, object]:
    """A hole's fields but those that say nothing; there may be hundreds of a series."""
    said = {"attempts": 1, "note": "", "permanent": False}
    return {name: value for name, value in vars(hole).items() if said.get(name) != value}
