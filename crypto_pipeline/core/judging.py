"""What one answer settles of the window that was asked for, and what it leaves open.

ccxt turns many failures into fewer candles, so no absence is believed because rows are missing: it
counts as "none" only between two candles of one good answer, on an exchange that leaves quiet
minutes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from crypto_pipeline.core.answers import Answer, final_before
from crypto_pipeline.core.intervals import (
    Interval,
    Intervals,
    intersect,
    intersection,
    overlaps,
    subtract,
    union,
)
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.rules import NO_TIME, RULES, columns_of, first_broken, times_ms
from crypto_pipeline.core.timeframes import timeframe_ms

#: A row that breaks one of these belongs nowhere, so it may stand for any candle that is absent.
_ASTRAY: Final = [
    index
    for index, rule in enumerate(RULES)
    if rule.name in ("open_time_invalid", "in_future", "off_grid")
]

_Times = npt.NDArray[np.int64]
Quiet = Literal["filled", "omitted", "unknown"]


def judge_answers(
    answers: Sequence[Answer], observations: pd.DataFrame, *, quiet: Quiet, settle_ms: int
) -> list[Judgement]:
    """Judge each answer by its rows, which ``observations`` holds one answer after the other."""
    broken = first_broken(columns_of(observations))
    open_time, final = times_ms(observations["open_time"]), observations["final"].to_numpy()
    judgements = []
    end = 0
    for answer in answers:
        start, end = end, end + answer.size
        rows = slice(start, end)
        judgements.append(
            _judge(answer, open_time[rows], final[rows], broken[rows], quiet, settle_ms)
        )
    return judgements


def _judge(
    answer: Answer,
    open_time: _Times,
    final: npt.NDArray[np.bool_],
    broken: npt.NDArray[np.int8],
    quiet: Quiet,
    settle_ms: int,
) -> Judgement:
    length = timeframe_ms(answer.timeframe)
    before = final_before(answer, open_time, settle_ms=settle_ms)
    span = Interval(answer.window.start, max(answer.window.start, min(answer.window.end, before)))
    kept = open_time[broken < 0]
    candles = runs(open_time[final & (broken < 0)], length)
    slots = open_time // length * length
    refused = runs(slots[(broken >= 0) & (open_time != NO_TIME)], length)
    known = candles
    astray = np.isin(broken, _ASTRAY).any()
    if quiet == "omitted" and candles and not astray:
        # A forming candle is one, too: what is absent before it is.
        between = Interval(candles[0].start, max(candles[-1].end, int(kept.max())))
        known = subtract([between], subtract(refused, candles))
    settled = intersect(known, span)
    # A row that belongs nowhere may be any of those that did not come.
    rejected = subtract([span], settled) if astray else intersect(subtract(refused, candles), span)
    return Judgement(
        settled=settled,
        rejected=rejected,
        silent=subtract([span], [*settled, *rejected]),
        # Candles that nobody asked for do not show that those asked for were looked up.
        empty=not ((kept >= answer.window.start) & (kept < answer.window.end)).any(),
        note=_rules(broken),
    )


def runs(times: _Times, length: int) -> Intervals:
    """The maximal intervals that candles opening at these times fill."""
    if not len(times):
        return ()
    first_time, last_time = int(times[0]), int(times[-1])
    if last_time - first_time == (len(times) - 1) * length and (np.diff(times) == length).all():
        return (Interval(first_time, last_time + length),)  # most pages: no hole, in order
    times = np.unique(times)
    first = np.flatnonzero(np.diff(times, prepend=times[0] - 2 * length) != length)
    last = np.append(first[1:], len(times)) - 1
    return tuple(
        Interval(start, end + length)
        for start, end in zip(times[first].tolist(), times[last].tolist(), strict=True)
    )


def _rules(broken: npt.NDArray[np.int8]) -> str:
    counts = Counter(broken[broken >= 0].tolist())
    return ", ".join(f"{RULES[index].name} ({count})" for index, count in sorted(counts.items()))


def outages(
    silent: Sequence[Sequence[tuple[Interval, int]]],
    settled: Sequence[Intervals],
    *,
    bounds: Interval,
    symbols_needed: int = 2,
    confirmations: int = 3,
) -> Intervals:
    """Stretches in which an exchange that fills quiet minutes had no candle of any symbol.

    For series of one timeframe, one entry each: ``silent`` holds what was answered without a
    candle, with how often, sorted and disjoint; ``settled`` what is there. Proof is silence of all
    symbols with a candle of at least one directly before and after; where fewer than two symbols
    traded before and after it (the others may be delisted), or where the partition's ``bounds``
    stand for a candle, the silence must have been confirmed.
    """
    if not silent:
        return ()
    common: Intervals = union(interval for interval, _ in silent[0])
    for entries in silent[1:]:
        common = intersection(common, (interval for interval, _ in entries))
    starts = {interval.start for each in settled for interval in each}
    ends = {interval.end for each in settled for interval in each}
    lives = [(each[0].start, each[-1].end) for each in settled if each]
    asked: dict[int, int] = {}
    for entries in silent:
        for index, entry, _ in overlaps(common, [interval for interval, _ in entries]):
            attempts = entries[entry][1]
            asked[index] = min(attempts, asked.get(index, attempts))
    found = []
    for index, stretch in enumerate(common):
        bounded = (stretch.start in ends, stretch.end in starts)
        at_bounds = (stretch.start == bounds.start, stretch.end == bounds.end)
        believed = asked[index] >= confirmations
        enclosed = all(
            candle or (border and believed)
            for candle, border in zip(bounded, at_bounds, strict=True)
        )
        trading = sum(first < stretch.start and stretch.end < last for first, last in lives)
        if enclosed and (trading >= symbols_needed or believed):
            found.append(stretch)
    return tuple(found)
