"""Which windows to ask an exchange for.

One pure function serves the minute tick, a backfill and the retry after a crash: what is wanted,
less what is settled, packed into the fewest windows of at most a page.
"""

from __future__ import annotations

from crypto_pipeline.core.intervals import Interval, Intervals, intersect, subtract
from crypto_pipeline.core.timeframes import timeframe_ms


def plan_windows(
    *,
    wanted: Interval,
    settled: Intervals,
    timeframe: str,
    now: int,
    page: int,
    reread: int = 0,
    history: int | None = None,
) -> list[Interval]:
    """The windows to ask for, oldest first.

    Args:
        wanted: the partitions' span; both ends on the timeframe's grid.
        timeframe: of the series.
        settled: what was answered and is final.
        now: the exchange's clock, ms; the candle that is forming is asked for, later ones are not.
        page: candles one request can bring.
        reread: closed candles before an open end that are asked for again, for late corrections.
        history: candles back from ``now`` that the exchange serves; older windows cannot be asked
            for, and None means all.
    """
    length = timeframe_ms(timeframe)
    forming = now // length * length
    reachable = wanted.start if history is None else max(wanted.start, forming - history * length)
    asked = Interval(reachable, min(wanted.end, forming + length))
    missing = list(subtract([asked], settled))
    if not missing:
        return []
    if reread and missing[-1].end == forming + length:
        again = Interval(missing[-1].start - reread * length, missing[-1].start)
        missing = list(subtract([asked], subtract(settled, [again])))
    return _packed(missing, span=page * length, asked=asked)


def _packed(missing: list[Interval], *, span: int, asked: Interval) -> list[Interval]:
    """The fewest windows no longer than ``span`` that cover the intervals, oldest first."""
    windows: list[Interval] = []
    cursor = asked.start
    for hole in missing:
        cursor = max(cursor, hole.start)
        while cursor < hole.end:
            reach = Interval(cursor, cursor + span)
            inside = intersect(missing, reach)
            windows.append(Interval(cursor, inside[-1].end))
            cursor = reach.end
    return windows
