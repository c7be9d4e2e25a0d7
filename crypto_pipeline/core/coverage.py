"""What was asked of an exchange for one partition, and what came of it.

Kept in the same file as the observations, so that the two cannot disagree. "Asked, and the exchange
had none", "asked in vain" and "never asked" are different facts: rows alone cannot tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, Self

from crypto_pipeline.core.intervals import (
    Interval,
    Intervals,
    intersection,
    overlaps,
    subtract,
    union,
)
from crypto_pipeline.core.judgement import Judgement
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


class Series(NamedTuple):
    """One series of candles of an exchange."""

    symbol: str
    timeframe: str


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


@dataclass(frozen=True, kw_only=True)
class TradingLife:
    """When the exchange's own candles of a symbol begin and end, ms; None where unknown.

    ``first``: no candle is older; ``last``: none opens at or after it. ``evidence`` says how that
    is known; ``exact``: to the candle, and not to the day only.
    """

    first: int | None = None
    last: int | None = None
    evidence: str = ""
    exact: bool = False

    def within(self, bounds: Interval, known: SeriesCoverage) -> TradingLife:
        """To the candle, in the partition where it begins or ends on one of its days.

        Daily candles tell the day only; in that day the silence before its first candle, or after
        its last one, is not the symbol's any more.
        """
        first, last = self.first, self.last
        if self.exact or not known.settled:
            return self
        begins, ends = known.settled[0].start, known.settled[-1].end
        silent = union(hole.interval for hole in known.holes if hole.confirmed)
        leads = any(each.start <= (first or 0) and each.end == begins for each in silent)
        trails = any(each.start == ends and each.end >= (last or 0) for each in silent)
        if first is not None and bounds.start <= first < bounds.end and leads:
            first = begins
        if last is not None and bounds.start < last <= bounds.end and trails:
            last = ends
        return replace(self, first=first, last=last)


@dataclass(frozen=True, kw_only=True)
class SeriesCoverage:
    """What is known of one series in one partition.

    Attributes:
        settled: asked, answered and final: a candle came, or its absence is proven.
        outages: the part of ``settled`` in which the whole exchange was silent.
        by_trades: the part of ``settled`` that was built from trades.
        holes: asked in vain, and not settled since; sorted, disjoint.
        life: the symbol's trading life, where it had to be looked up.
        answered_at: when the newest answer came, ms, our clock.
    """

    settled: Intervals = ()
    outages: Intervals = ()
    by_trades: Intervals = ()
    holes: tuple[Hole, ...] = ()
    life: TradingLife | None = None
    answered_at: int | None = None

    def answered(self, window: Interval, judgement: Judgement, *, at: int) -> Self:
        """After an answer to ``window``, of which ``judgement`` says what it settles."""
        settled = union([*self.settled, *judgement.settled])
        found: list[tuple[HoleKind, Intervals]] = [
            ("empty" if judgement.empty else "silent", judgement.silent),
            ("rejected", judgement.rejected),
        ]
        new = [
            hole
            for kind, intervals in found
            for hole in self._asked_again(subtract(intervals, settled), kind, at, judgement.note)
        ]
        # What is not final by the clock of this answer, but was by an earlier one's, stays open.
        judged = [*settled, *judgement.silent, *judgement.rejected]
        kept = [
            *_outside([hole for hole in self.holes if hole.kind == "failed"], [*judged, window]),
            *_outside([hole for hole in self.holes if hole.kind != "failed"], judged),
        ]
        return replace(
            self,
            settled=settled,
            holes=_tidy([*kept, *new]),
            answered_at=max(at, self.answered_at or at),
        )

    def failed(self, window: Interval, *, at: int, error: str, permanent: bool = False) -> Self:
        """After a request for ``window`` failed: what was known before stays known."""
        known = [hole for hole in self.holes if hole.kind != "failed"]
        unknown = subtract([window], [*self.settled, *(hole.interval for hole in known)])
        new = [
            replace(hole, permanent=permanent)
            for hole in self._asked_again(unknown, "failed", at, error[:500])
        ]
        rested = [replace(hole, at=at) for hole in _inside(known, [window])]
        kept = _outside(self.holes, [window])
        return replace(self, holes=_tidy([*kept, *rested, *new]))

    def settle(self, proven: Iterable[tuple[int, int]], *, outage: bool = False) -> Self:
        """After more was proven than any single answer says."""
        settled = union([*self.settled, *proven])
        return replace(
            self,
            settled=settled,
            outages=union([*self.outages, *proven]) if outage else self.outages,
            holes=_tidy(_outside(self.holes, settled)),
        )

    def traded(self, covered: Interval, *, at: int) -> Self:
        """After all trades of ``covered`` were seen."""
        return replace(
            self.settle([covered]),
            by_trades=union([*self.by_trades, covered]),
            answered_at=max(at, self.answered_at or at),
        )

    @property
    def reached(self) -> int | None:
        """The newest instant up to which an answer said anything, ms."""
        answered = [hole.end for hole in self.holes if hole.kind != "failed"]
        return max([*answered, *(end for _, end in self.settled)], default=None)

    def _asked_again(self, parts: Intervals, kind: HoleKind, at: int, note: str) -> Iterator[Hole]:
        """The parts as holes: those of the same kind before them were asked for once more."""
        before = [hole.interval for hole in self.holes]
        for start, end in subtract(parts, before):
            yield Hole(start=start, end=end, kind=kind, first_seen=at, at=at, note=note)
        for position, _, again in overlaps(before, parts):
            old = self.holes[position]
            yield Hole(
                start=again.start,
                end=again.end,
                kind=kind,
                first_seen=old.first_seen,
                at=at,
                attempts=old.attempts + 1 if old.kind == kind else 1,
                note=note,
            )


def bridged(parts: Sequence[SeriesCoverage]) -> list[SeriesCoverage]:
    """Partitions of one series, one after the other, with the silence between candles proven.

    For exchanges that leave quiet minutes out. A stretch that good answers cover without a break,
    with candles at both ends, holds no others: also where two answers, or two days, meet.
    """
    confirmed = [[hole.interval for hole in part.holes if hole.confirmed] for part in parts]
    settled = union(interval for part in parts for interval in part.settled)
    components = union([*settled, *(interval for each in confirmed for interval in each)])
    ends: dict[int, Interval] = {}
    for position, _, candles in overlaps(components, settled):
        first = ends.get(position, candles)
        ends[position] = Interval(first.start, candles.end)
    found = [intersection(each, ends.values()) for each in confirmed]
    return [
        part.settle(proven) if proven else part for part, proven in zip(parts, found, strict=True)
    ]


def _inside(holes: Sequence[Hole], parts: Sequence[Interval]) -> list[Hole]:
    """What of the holes lies in the parts; both are sorted and disjoint."""
    return [
        holes[position].within(left)
        for position, _, left in overlaps([hole.interval for hole in holes], parts)
    ]


def _outside(holes: Sequence[Hole], cut: Iterable[tuple[int, int]]) -> list[Hole]:
    """What of the holes, which are sorted and disjoint, the cut leaves."""
    return _inside(holes, subtract((hole.interval for hole in holes), cut))


def _tidy(holes: Iterable[Hole]) -> tuple[Hole, ...]:
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


def _compact(hole: Hole) -> dict[str, object]:
    """A hole's fields but those that say nothing; there may be hundreds of a series."""
    said = {"attempts": 1, "note": "", "permanent": False}
    return {name: value for name, value in vars(hole).items() if said.get(name) != value}


@dataclass(frozen=True)
class Coverage:
    """Coverage of one partition, by series. A series that was never asked for is absent."""

    by_series: Mapping[Series, SeriesCoverage] = field(default_factory=dict)

    def of(self, series: Series) -> SeriesCoverage:
        """The series's coverage; an empty one if it was never asked for."""
        return self.by_series.get(series, SeriesCoverage())

    def updated(self, series: Series, coverage: SeriesCoverage) -> Self:
        """The same with one series's coverage replaced."""
        return replace(self, by_series={**self.by_series, series: coverage})

    def to_json(self) -> str:
        """Compact JSON, stable in order."""
        return json.dumps(
            [
                {
                    "symbol": series.symbol,
                    "timeframe": series.timeframe,
                    "settled": coverage.settled,
                    "outages": coverage.outages,
                    "by_trades": coverage.by_trades,
                    "answered_at": coverage.answered_at,
                    "holes": [_compact(hole) for hole in coverage.holes],
                    "life": None if coverage.life is None else asdict(coverage.life),
                }
                for series, coverage in sorted(self.by_series.items())
            ],
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        entries: list[dict[str, Any]] = json.loads(text)

        def intervals(entry: dict[str, Any], name: str) -> Intervals:
            return tuple(Interval(*pair) for pair in entry.get(name, ()))

        return cls(
            {
                Series(entry["symbol"], entry["timeframe"]): SeriesCoverage(
                    settled=intervals(entry, "settled"),
                    outages=intervals(entry, "outages"),
                    by_trades=intervals(entry, "by_trades"),
                    holes=tuple(Hole(**hole) for hole in entry.get("holes", ())),
                    life=TradingLife(**entry["life"]) if entry.get("life") else None,
                    answered_at=entry["answered_at"],
                )
                for entry in entries
            }
        )
