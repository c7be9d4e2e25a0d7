"""What was asked of an exchange for one partition, and what came of it.

Kept in the same file as the observations, so that the two cannot disagree. "Asked, and the exchange
had none", "asked in vain" and "never asked" are different facts: rows alone cannot tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, Self

from crypto_pipeline.core.holes import Hole, HoleKind, compact, inside, outside, tidy
from crypto_pipeline.core.intervals import (
    Interval,
    Intervals,
    intersection,
    overlaps,
    subtract,
    union,
)
from crypto_pipeline.core.judgement import Judgement


class Series(NamedTuple):
    """One series of candles of an exchange."""

    symbol: str
    timeframe: str


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
            *outside([hole for hole in self.holes if hole.kind == "failed"], [*judged, window]),
            *outside([hole for hole in self.holes if hole.kind != "failed"], judged),
        ]
        return replace(
            self,
            settled=settled,
            holes=tidy([*kept, *new]),
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
        rested = [replace(hole, at=at) for hole in inside(known, [window])]
        kept = outside(self.holes, [window])
        return replace(self, holes=tidy([*kept, *rested, *new]))

    def settle(self, proven: Iterable[tuple[int, int]], *, outage: bool = False) -> Self:
        """After more was proven than any single answer says."""
        settled = union([*self.settled, *proven])
        return replace(
            self,
            settled=settled,
            outages=union([*self.outages, *proven]) if outage else self.outages,
            holes=tidy(outside(self.holes, settled)),
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
                    "holes": [compact(hole) for hole in coverage.holes],
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
