"""The gaps of a partition and their causes, from what is there and what was asked.

A pure function of the archive: the causes of a partition can be found again at any time, and are
never guessed from rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage
from crypto_pipeline.core.gaps import PROVEN, Cause, Gap, PartitionState
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.holes import Hole
from crypto_pipeline.core.intervals import (
    Interval,
    Intervals,
    intersect,
    intersection,
    overlaps,
    subtract,
    union,
)
from crypto_pipeline.core.planning import LONGEST_PAUSE_MS, next_try, reach
from crypto_pipeline.core.timeframes import timeframe_ms, utc

#: Silence of all symbols is an outage where chance explains it with less than this probability.
_UNLIKELY: Final = 1e-12
#: Silence of one symbol up to now is more than quiet minutes at less than this probability.
_UNUSUAL: Final = 1e-6


@dataclass(frozen=True, kw_only=True)
class PartitionFacts:
    """What the causes of one partition's gaps are found from. Times in ms.

    Attributes:
        bounds: the partition, from the exchange's first day of history on.
        series: those configured.
        coverage: what was asked, and what came.
        stored: the candles that are there, by series, as intervals they fill.
        habits: the exchange's.
        now: our clock.
        due_before: candles that open and close before this are due.
    """

    bounds: Interval
    series: Sequence[Series]
    coverage: Coverage
    stored: Mapping[Series, Intervals]
    habits: Habits
    now: int
    due_before: int


def partition_gaps(facts: PartitionFacts) -> tuple[list[Gap], PartitionState]:
    """Every missing interval that is due, in the order of series and time, and the sums."""
    expected = {series: _expected(facts, series) for series in facts.series}
    silent = _silent_together(facts, expected)
    gaps = [
        gap
        for series in facts.series
        for gap in _series_gaps(facts, series, expected[series], silent)
    ]
    missing: dict[Cause, int] = {}
    for gap in gaps:
        length = timeframe_ms(gap.timeframe)
        missing[gap.cause] = missing.get(gap.cause, 0) + (gap.end - gap.start) // length
    due = {s: (each.end - each.start) // timeframe_ms(s.timeframe) for s, each in expected.items()}
    stored = {
        series: sum(
            (end - start) // timeframe_ms(series.timeframe)
            for start, end in intersect(facts.stored.get(series, ()), expected[series])
        )
        for series in facts.series
    }
    answered = [facts.coverage.of(series).answered_at for series in facts.series]
    state = PartitionState(
        expected=sum(due.values()),
        stored=sum(stored.values()),
        missing=missing,
        answered_at=max((at for at in answered if at is not None), default=None),
        checked_at=facts.now,
    )
    return gaps, state


def _expected(facts: PartitionFacts, series: Series) -> Interval:
    """The part of the partition in which a candle is due.

    Where quiet minutes are left out, nobody can say whether the silence up to now is over: as long
    as it is no longer than the series' other minutes explain, the next trade is awaited.
    """
    length = timeframe_ms(series.timeframe)
    end = min(facts.bounds.end, facts.due_before // length * length)
    whole = Interval(facts.bounds.start, max(facts.bounds.start, end))
    if facts.habits.quiet != "omitted" or facts.due_before >= facts.bounds.end:
        return whole
    answered = [h.interval for h in facts.coverage.of(series).holes if h.kind in _ANSWERED]
    silence = [span for span in union(answered) if span.start < end <= span.end]
    before = Interval(whole.start, silence[0].start) if silence else whole
    stored = _slots(intersect(facts.stored.get(series, ()), before), length)
    if not silence or not stored:
        return whole
    slots = _slots([before], length)
    share = (slots - stored + 1) / (slots + 2)
    awaited = (end - before.end) // length * math.log(share) >= math.log(_UNUSUAL)
    return before if awaited else whole


_ANSWERED: Final = ("silent", "empty")


def _slots(intervals: Iterable[tuple[int, int]], length: int) -> int:
    return sum(end - start for start, end in intervals) // length


def _series_gaps(
    facts: PartitionFacts, series: Series, expected: Interval, silent: Mapping[str, Intervals]
) -> list[Gap]:
    coverage = facts.coverage.of(series)
    left = subtract([expected], facts.stored.get(series, ()))
    found: list[Gap] = []

    def note(
        part: Interval, cause: Cause, evidence: str, *, hole: Hole | None = None, retry: int
    ) -> None:
        found.append(
            Gap(
                symbol=series.symbol,
                timeframe=series.timeframe,
                start=part.start,
                end=part.end,
                cause=cause,
                evidence=evidence,
                first_seen=facts.now if hole is None else hole.first_seen,
                last_checked=coverage.answered_at if hole is None else hole.at,
                next_retry=None if cause in PROVEN else retry,
            )
        )

    for intervals, cause, evidence in _known(facts, series, coverage, silent):
        for part in intersection(left, intervals):
            # What is settled is not asked for again: only somebody who looks can mend it.
            note(part, cause, evidence, retry=facts.now + LONGEST_PAUSE_MS)
        left = subtract(left, intervals)
    holes = [hole.interval for hole in coverage.holes]
    for _, position, part in overlaps(left, holes):
        hole = coverage.holes[position]
        cause, evidence = _of_hole(hole, facts.habits)
        note(part, cause, evidence, hole=hole, retry=next_try(hole, quiet=facts.habits.quiet))
    for part in subtract(left, holes):  # due since it closed
        note(part, "unknown", "not asked for yet", retry=part.end)
    return sorted(found, key=lambda gap: gap.start)


def _known(
    facts: PartitionFacts,
    series: Series,
    coverage: SeriesCoverage,
    silent: Mapping[str, Intervals],
) -> Iterator[tuple[Iterable[tuple[int, int]], Cause, str]]:
    """Causes that no request would change; the first that fits a missing candle counts."""
    life = coverage.life
    if life is not None and life.first is not None:
        yield [(0, life.first)], "not_listed_yet", life.evidence
    if life is not None and life.last is not None:
        yield [(life.last, 2**62)], "delisted", life.evidence
    yield coverage.outages, "exchange_outage", _OUTAGE
    yield coverage.by_trades, "no_trades", _BY_TRADES
    if facts.habits.quiet == "omitted":
        together = intersection(coverage.settled, silent.get(series.timeframe, ()))
        yield together, "exchange_outage", _SILENT
        yield coverage.settled, "no_trades", _NO_TRADES
    else:
        yield coverage.settled, "unknown", _LOST
    if facts.habits.history is not None and not facts.habits.trades:
        served = reach(facts.now, timeframe=series.timeframe, habits=facts.habits)
        newest = f"the exchange serves the newest {facts.habits.history:,} candles only"
        yield [(0, served)], "beyond_history", newest


_OUTAGE: Final = "answered without a candle for every symbol of the exchange, with candles around"
_SILENT: Final = "no candle of any symbol of the exchange, longer than quiet minutes explain"
_NO_TRADES: Final = (
    "answered with candles on both sides and none here; the exchange leaves quiet minutes out"
)
_BY_TRADES: Final = "all trades around it were read, and none was in it"
_LOST: Final = "the archive says that it came, but it is not among the validated candles"


def _of_hole(hole: Hole, habits: Habits) -> tuple[Cause, str]:
    asked = f"asked {hole.attempts} times, last {utc(hole.at).isoformat(timespec='seconds')}"
    if hole.kind == "failed":
        return "fetch_failed", f"{asked}: {hole.note}"
    if hole.kind == "rejected":
        return "rejected", f"{asked}: came, but broke {hole.note}"
    answered = (
        "no candle of the whole window"
        if hole.kind == "empty"
        else "candles, but not with candles around it"
    )
    habit = {
        "filled": "the exchange serves a flat candle for a quiet minute, so one is missing",
        "omitted": "no candle on both sides of it proves that there were no trades",
        "unknown": "whether this exchange leaves quiet minutes out is not known (habits.quiet)",
    }[habits.quiet]
    if hole.kind == "silent" and habits.quiet != "omitted":
        answered = "other candles"
    return "unknown", f"{asked}: answered with {answered}; {habit}"


def _silent_together(
    facts: PartitionFacts, expected: Mapping[Series, Interval]
) -> dict[str, Intervals]:
    """By timeframe: where all symbols are silent and chance does not explain it.

    Where quiet minutes are left out, an outage looks like a quiet stretch of every symbol at once;
    how quiet each one is otherwise says how likely that is.
    """
    found: dict[str, Intervals] = {}
    if facts.habits.quiet != "omitted":
        return found
    for timeframe in dict.fromkeys(series.timeframe for series in facts.series):
        group = [series for series in facts.series if series.timeframe == timeframe]
        if len(group) < 2:
            continue
        length = timeframe_ms(timeframe)
        absent = [subtract([expected[series]], facts.stored.get(series, ())) for series in group]
        common = absent[0]
        for intervals in absent[1:]:
            common = intersection(common, intervals)
        slots = [
            (_slots([expected[series]], length), _slots(intervals, length))
            for series, intervals in zip(group, absent, strict=True)
        ]
        found[timeframe] = tuple(
            stretch
            for stretch in common
            if _by_chance(_slots([stretch], length), slots) < math.log(_UNLIKELY)
        )
    return found


def _by_chance(stretch: int, slots: Sequence[tuple[int, int]]) -> float:
    """Logarithm of the probability that all series are quiet throughout a stretch.

    Args:
        stretch: its candles.
        slots: of each series, how many candles were due, and how many of them are absent.
    """
    return stretch * sum(
        math.log((quiet - stretch + 1) / (due - stretch + 2)) for due, quiet in slots
    )
