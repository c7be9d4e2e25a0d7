"""Which windows to ask an exchange for.

One pure function serves the minute tick, a backfill and the retry after a crash: what is wanted,
less what is settled, packed into the fewest windows of at most a page.
"""

from __future__ import annotations

from crypto_pipeline.core.intervals import Interval, Intervals, subtract
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
        reread: so many candles before the newest closed one are asked for again with it, for late
            corrections; where a partition ends among them, too.
        history: candles back from ``now`` that the exchange serves; older windows cannot be asked
            for, and None means all.
    """
    length = timeframe_ms(timeframe)
    forming = now // length * length
    reachable = wanted.start if history is None else max(wanted.start, forming - history * length)
    asked = Interval(reachable, min(wanted.end, forming + length))
    again = Interval(forming - (reread + 1) * length, forming) if reread else Interval(0, 0)
    missing = list(subtract([asked], subtract(settled, [again])))
    return _packed(missing, span=page * length) if missing else []


def _packed(missing: list[Interval], *, span: int) -> list[Interval]:
    """The fewest windows no longer than ``span`` that cover the intervals, oldest first."""
    windows: list[Interval] = []
    full = missing[0].start  # where the last window can reach no further
    for start, end in missing:
        if start < full:  # settled candles between two holes of one window are asked for with it
            windows[-1] = Interval(windows[-1].start, min(end, full))
        for cursor in range(max(start, full), end, span):
            full = cursor + span
            windows.append(Interval(cursor, min(end, full)))
    return windows
