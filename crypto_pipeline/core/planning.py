"""Which windows to ask an exchange for.

One pure function serves the minute tick, a backfill, the retry after a crash and the repair of a
gap: what is wanted of a series' trading life, less what is settled, packed into the fewest windows
of at most a page.
"""

from __future__ import annotations

from typing import Final

from crypto_pipeline.core.coverage import SeriesCoverage
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.holes import CONFIRMATIONS, Hole
from crypto_pipeline.core.intervals import Interval, Intervals, overlaps, subtract, union
from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms

#: Candles asked for beside a window, where a page has room: what encloses a quiet minute proves it.
MARGIN: Final = 10
#: Where trades reach further than candles do, the oldest candles in reach are left to them: they
#: would be out of reach by the time they are asked for.
REACH_MARGIN: Final = 10
LONGEST_PAUSE_MS: Final = 6 * 60 * MINUTE_MS


def plan_windows(
    *,
    wanted: Interval,
    coverage: SeriesCoverage,
    timeframe: str,
    now: int,
    habits: Habits,
    reread: int = 0,
    resting: Intervals = (),
) -> list[Interval]:
    """The windows to ask for, oldest first.

    Args:
        wanted: the partitions' span; both ends on the timeframe's grid.
        coverage: of the series, over that span.
        timeframe: of the series.
        now: the exchange's clock, ms; the candle that is forming is asked for, later ones are not.
        habits: the exchange's: its page, how far back it serves, whether quiet minutes are left out.
        reread: so many candles before the newest closed one are asked for again with it, for late
            corrections; where a partition ends among them, too.
        resting: holes that are not due for another try.
    """
    length = timeframe_ms(timeframe)
    forming = now // length * length
    life = _alive(coverage)
    asked = Interval(
        max(wanted.start, reach(now, timeframe=timeframe, habits=habits), life.start),
        min(wanted.end, forming + length, life.end),
    )
    again = Interval(forming - (reread + 1) * length, forming) if reread else Interval(0, 0)
    known = subtract([*coverage.settled, *resting], [again])
    windows = _packed(list(subtract([asked], known)), span=habits.page * length)
    if habits.quiet != "omitted":
        return windows
    holes = [hole.interval for hole in coverage.holes]
    tried = {position for position, _, _ in overlaps(windows, holes)}
    return [
        _with_margin(
            window,
            page=habits.page,
            length=length,
            margin=habits.page if position in tried else MARGIN,
            last=forming + length,
        )
        for position, window in enumerate(windows)
    ]


def plan_trades(
    *,
    wanted: Interval,
    coverage: SeriesCoverage,
    timeframe: str,
    now: int,
    habits: Habits,
    resting: Intervals = (),
) -> Intervals:
    """What to build from trades: older than the candles the exchange serves, and not settled."""
    if habits.history is None or not habits.trades:
        return ()
    life = _alive(coverage)
    end = min(wanted.end, reach(now, timeframe=timeframe, habits=habits), life.end)
    asked = Interval(max(wanted.start, life.start), end)
    return subtract([asked], [*coverage.settled, *resting])


def reach(now: int, *, timeframe: str, habits: Habits) -> int:
    """The oldest candle to ask the candle endpoint for, ms; 0 where it serves all of them."""
    if habits.history is None:
        return 0
    length = timeframe_ms(timeframe)
    candles = habits.history - (REACH_MARGIN if habits.trades else 0)
    return max(0, now // length * length - max(candles, 0) * length)


def next_try(hole: Hole, *, quiet: str) -> int:
    """When to ask for a hole again, ms: after pauses that double from a minute to six hours."""
    if hole.permanent:
        return hole.at + LONGEST_PAUSE_MS
    if quiet == "omitted" and hole.kind in ("silent", "empty") and hole.attempts >= CONFIRMATIONS:
        # The next candle will prove it, and that is asked for anyway.
        return hole.at + 60 * MINUTE_MS
    return hole.at + min(LONGEST_PAUSE_MS, MINUTE_MS * 2 ** min(hole.attempts - 1, 20))


def resting(coverage: SeriesCoverage, *, now: int, quiet: str, back_since: int) -> Intervals:
    """The holes whose next try is not due.

    Args:
        coverage: of the series.
        now: our clock, ms.
        quiet: the exchange's habit.
        back_since: since when the exchange answers again, ms: a request that failed before then is
            worth another try at once.
    """
    return union(
        hole.interval
        for hole in coverage.holes
        if now < next_try(hole, quiet=quiet)
        and not (hole.kind == "failed" and hole.at < back_since)
    )


def asked_just_now(coverage: SeriesCoverage, *, now: int) -> Intervals:
    """The holes about which the exchange was heard within the last minute."""
    return union(
        hole.interval
        for hole in coverage.holes
        if hole.kind != "failed" and hole.at <= now < hole.at + MINUTE_MS
    )


def _alive(coverage: SeriesCoverage) -> Interval:
    """The symbol's trading life as far as it is known, at most all time."""
    life = coverage.life
    first = 0 if life is None or life.first is None else life.first
    last = 2**62 if life is None or life.last is None else life.last
    return Interval(first, last)


def _packed(missing: list[Interval], *, span: int) -> list[Interval]:
    """The fewest windows no longer than ``span`` that cover the intervals, oldest first."""
    windows: list[Interval] = []
    full = missing[0].start if missing else 0  # where the last window can reach no further
    for start, end in missing:
        if start < full:  # settled candles between two holes of one window are asked for with it
            windows[-1] = Interval(windows[-1].start, min(end, full))
        for cursor in range(max(start, full), end, span):
            full = cursor + span
            windows.append(Interval(cursor, min(end, full)))
    return windows


def _with_margin(window: Interval, *, page: int, length: int, margin: int, last: int) -> Interval:
    """The window with candles beside it, as many as its page has room for."""
    room = page - (window.end - window.start) // length
    after = max(0, min(margin, room // 2, (last - window.end) // length))
    before = min(margin, room - after)
    return Interval(max(0, window.start - before * length), window.end + after * length)


#: An exchange that takes longer to settle is not waited for: its candles come a tick later.
_LONGEST_SETTLING_MS: Final = 10_000


def settling_ms(now: int, *, settle_ms: int) -> int:
    """How long a minute run waits before it asks, so that the minute just closed is final by then.

    A run that asked at once would get it as one that may still change, and store it a minute late. The
    exchange's clock is known to the second, so a second more than it takes to settle.

    Args:
        now: our clock, ms.
        settle_ms: how long after its close a candle may still change.
    """
    return max(0, min(settle_ms, _LONGEST_SETTLING_MS) + 1_000 - now % MINUTE_MS)
