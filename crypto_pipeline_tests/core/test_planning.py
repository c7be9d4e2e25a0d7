"""Which windows are asked for: all that is missing and reachable, in as few requests as possible.

Candles are numbered here: candle ``i`` opens at ``T0 + i`` minutes.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.coverage import SeriesCoverage, TradingLife, bridged
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.holes import Hole, HoleKind
from crypto_pipeline.core.intervals import Interval, Intervals, union
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.planning import (
    LONGEST_PAUSE_MS,
    MARGIN,
    REACH_MARGIN,
    next_try,
    plan_trades,
    plan_windows,
    reach,
    resting,
    settling_ms,
)
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, timeframe_ms
from crypto_pipeline_tests.core.builders import T0, at, minutes, span


def candles(numbers: Collection[int]) -> Intervals:
    return union(span(number, number + 1) for number in numbers)


def hole(start: int, end: int, kind: HoleKind = "silent", **facts: Any) -> Hole:
    return Hole(
        **{"start": at(start), "end": at(end), "kind": kind, "first_seen": 0, "at": 0} | facts
    )


def numbered(windows: Collection[Interval]) -> list[range]:
    numbers = [((w.start - T0) / MINUTE_MS, (w.end - T0) / MINUTE_MS) for w in windows]
    assert all(start.is_integer() and end.is_integer() for start, end in numbers)
    return [range(int(start), int(end)) for start, end in numbers]


def plan(
    *,
    wanted: tuple[int, int],
    settled: Collection[int] = (),
    forming: int = 10**6,
    page: int = 1_000,
    reread: int = 0,
    holes: tuple[Hole, ...] = (),
    life: TradingLife | None = None,
    rest: Collection[int] = (),
    **habits: Any,
) -> list[range]:
    """The windows as ranges of candle numbers; ``forming``: the candle that is open now."""
    return numbered(
        plan_windows(
            wanted=span(*wanted),
            coverage=SeriesCoverage(settled=candles(settled), holes=holes, life=life),
            timeframe="1m",
            now=at(forming) + 12_345,
            habits=Habits(page=page, **habits),
            reread=reread,
            resting=candles(rest),
        )
    )


def fewest(candles: list[int], page: int) -> int:
    """The smallest number of windows that cover the candles, by trying every window."""

    @cache
    def cost(first: int) -> int:
        left = [c for c in candles if c >= first]
        if not left:
            return 0
        return 1 + min(cost(start + page) for start in range(left[0] - page + 1, left[0] + 1))

    return cost(-(10**9))


@given(
    start=st.integers(0, 20),
    length=st.integers(0, 40),
    settled=st.sets(st.integers(0, 60)),
    forming=st.integers(-2, 70),
    page=st.integers(1, 12),
    reread=st.integers(0, 5),
    history=st.none() | st.integers(1, 50),
    rest=st.sets(st.integers(0, 60)),
    life=st.none() | st.tuples(st.none() | st.integers(0, 70), st.none() | st.integers(0, 70)),
)
def test_plan(
    start: int,
    length: int,
    settled: set[int],
    forming: int,
    page: int,
    reread: int,
    history: int | None,
    rest: set[int],
    life: tuple[int | None, int | None] | None,
) -> None:
    """Against sets of candle numbers: nothing forgotten, nothing beyond reach, the fewest windows.

    A settled or a resting candle is asked for again only as a reread, or where it lies between two
    missing candles of one window; none outside the symbol's trading life ever.
    """
    oldest = start if history is None else max(start, forming - history)
    reachable = set(range(oldest, min(start + length, forming + 1)))
    first, last = life or (None, None)
    reachable &= set(range(first or 0, 100 if last is None else last))
    missing = reachable - settled - rest
    if reread:
        missing |= set(range(forming - reread - 1, forming)) & reachable

    windows = plan(
        wanted=(start, start + length),
        settled=settled,
        forming=forming,
        page=page,
        reread=reread,
        history=history,
        rest=rest,
        life=life
        and TradingLife(
            first=None if first is None else at(first), last=None if last is None else at(last)
        ),
    )

    asked = [candle for window in windows for candle in window]
    assert asked == sorted(set(asked))
    assert missing <= set(asked) <= reachable
    assert all(len(window) <= page for window in windows)
    assert all(window[0] in missing and window[-1] in missing for window in windows)
    assert len(windows) == fewest(sorted(missing), page)


@pytest.mark.parametrize("days", [1, 3, 31])
@pytest.mark.parametrize("page", [200, 300, 720, 1_000, 1_440, 10_000])
def test_a_cold_backfill_fills_its_pages(days: int, page: int) -> None:
    """Windows run across midnight: no request is spent on the rest of a day."""
    minutes = days * DAY_MS // MINUTE_MS
    windows = plan(wanted=(0, minutes), page=page)
    assert len(windows) == ceil(minutes / page)
    assert [candle for window in windows for candle in window] == list(range(minutes))


def test_a_minute_tick_is_one_request() -> None:
    """The forming candle, the one that just closed and the reread ones come in one window."""
    assert plan(wanted=(0, 1_440), settled=range(99), forming=100, reread=3) == [range(96, 101)]


def test_nothing_left_is_no_request() -> None:
    """A reread alone is no reason to ask: a settled day is left alone."""
    assert plan(wanted=(0, 1_440), settled=range(1_440), reread=5) == []


def test_a_hole_in_the_past_is_no_open_end() -> None:
    """A retry asks for what failed, without rereading around it."""
    assert plan(wanted=(0, 60), settled=set(range(60)) - {7}, reread=5) == [range(7, 8)]


def test_a_fragmented_month_is_planned_in_linear_time() -> None:
    """Every second minute settled: 22,320 holes, planned at once rather than hole by hole by hole."""
    windows = plan(wanted=(0, 44_640), settled=range(0, 44_640, 2), page=720)
    assert len(windows) == ceil(44_639 / 720)


# --- Beside a window, where quiet minutes are left out --------------------------------------------


@given(
    settled=st.sets(st.integers(0, 60)),
    forming=st.integers(0, 70),
    page=st.integers(1, 40),
    tried=st.sets(st.integers(0, 60), max_size=4),
)
def test_margins(settled: set[int], forming: int, page: int, tried: set[int]) -> None:
    """No request more than without, none longer than a page, none for what has not begun; what was
    tried before fills its page, which then holds the candles that prove it."""
    facts: dict[str, Any] = {
        "wanted": (0, 60),
        "settled": settled,
        "forming": forming,
        "page": page,
    }
    holes = tuple(hole(number, number + 1) for number in sorted(tried - settled))
    bare = plan(**facts)
    wide = plan(**facts, holes=holes, quiet="omitted")
    assert len(wide) == len(bare)
    for inner, outer in zip(bare, wide, strict=True):
        assert set(inner) <= set(outer)
        assert len(outer) <= page
        assert outer[-1] <= max(forming, inner[-1])
        if set(inner) & (tried - settled):
            assert len(outer) == page
        else:
            assert inner[0] - MARGIN <= outer[0]
            assert outer[-1] <= inner[-1] + MARGIN
            assert len(outer) > len(inner) or len(inner) == page
    for quiet in ("filled", "unknown"):
        assert plan(**facts, holes=holes, quiet=quiet) == bare


def test_a_quiet_edge_is_asked_for_with_its_neighbours() -> None:
    """Coinbase left 00:07 out: alone in its window it would be silent for ever."""
    settled = set(range(60)) - {7}
    assert plan(wanted=(0, 60), settled=settled, quiet="omitted") == [range(7 - MARGIN, 8 + MARGIN)]
    assert plan(wanted=(0, 60), settled=settled, quiet="filled") == [range(7, 8)]


def test_a_margin_reaches_over_midnight() -> None:
    """The candle that proves the day's last quiet minute is tomorrow's first."""
    settled = range(1_439)
    assert plan(wanted=(0, 1_440), settled=settled, quiet="omitted") == [range(1_429, 1_450)]
    assert plan(wanted=(0, 1_440), settled=settled, quiet="omitted", forming=1_441) == [
        range(1_429, 1_442)
    ]


# --- How far back ---------------------------------------------------------------------------------


@given(
    forming=st.integers(0, 3_000),
    history=st.integers(1, 1_000),
    settled=st.sets(st.integers(0, 60)),
    timeframe=st.sampled_from(["1m", "15m"]),
)
def test_candles_and_trades_share_the_past(
    forming: int, history: int, settled: set[int], timeframe: str
) -> None:
    """Kraken's candles reach 720 back, its trades to the beginning: each missing candle is asked
    for in exactly one of the two ways."""
    length = timeframe_ms(timeframe)
    facts: dict[str, Any] = {
        "wanted": Interval(T0, T0 + 96 * length),
        "coverage": SeriesCoverage(
            settled=union((T0 + n * length, T0 + (n + 1) * length) for n in settled)
        ),
        "timeframe": timeframe,
        "now": T0 + forming * length + 5,
        "habits": Habits(page=1, history=history, trades=True, quiet="filled"),
    }
    windows, trades = plan_windows(**facts), plan_trades(**facts)
    asked = [
        (time - T0) // length
        for start, end in [*trades, *windows]
        for time in range(start, end, length)
    ]
    assert sorted(asked) == [n for n in range(min(96, forming + 1)) if n not in settled]
    oldest = forming - max(0, history - REACH_MARGIN)
    assert all(window.start >= T0 + oldest * length for window in windows)


def test_trades_are_for_those_who_need_them() -> None:
    """An exchange that serves all its candles is never asked for its trades."""
    facts: dict[str, Any] = {
        "wanted": span(0, 60), "coverage": SeriesCoverage(), "timeframe": "1m", "now": at(9_000)
    }  # fmt: skip
    kraken = Habits(history=720, trades=True)
    assert plan_trades(**facts, habits=kraken) == (span(0, 60),)
    assert plan_trades(**facts, habits=kraken, resting=(span(10, 60),)) == (span(0, 10),)
    assert plan_trades(**facts, habits=Habits(history=720)) == ()
    assert plan_trades(**facts, habits=Habits(trades=True)) == ()
    listed = replace(facts["coverage"], life=TradingLife(first=at(20), last=at(40)))
    assert plan_trades(**facts | {"coverage": listed}, habits=kraken) == (span(20, 40),)


def test_reach() -> None:
    """Counted from the forming candle; nothing before the epoch."""
    assert reach(at(100) + 1, timeframe="1m", habits=Habits()) == 0
    assert reach(at(100) + 1, timeframe="1m", habits=Habits(history=30)) == at(70)
    assert reach(at(100) + 1, timeframe="1m", habits=Habits(history=5, trades=True)) == at(100)
    assert reach(at(60), timeframe="1h", habits=Habits(history=10**9)) == 0


# --- When to ask again ----------------------------------------------------------------------------


@given(
    kind=st.sampled_from(["failed", "silent", "empty", "rejected"]),
    attempts=st.integers(1, 10_000),
    permanent=st.booleans(),
    quiet=st.sampled_from(["filled", "omitted", "unknown"]),
)
def test_pauses_grow(kind: HoleKind, attempts: int, permanent: bool, quiet: str) -> None:
    """From a minute to six hours, never shorter after one more attempt, and never for ever."""
    pauses = [
        next_try(hole(0, 1, kind, at=7, attempts=n, permanent=permanent), quiet=quiet) - 7
        for n in (attempts, attempts + 1)
    ]
    assert MINUTE_MS <= pauses[0] <= LONGEST_PAUSE_MS
    assert pauses[0] <= pauses[1] or (quiet == "omitted" and kind in ("silent", "empty"))


def test_the_pauses_of_a_failure() -> None:
    """1, 2, 4 … 256 minutes, then every six hours; what asking does not mend, every six hours."""
    failed = hole(0, 1, "failed")
    pauses = [next_try(replace(failed, attempts=n), quiet="filled") for n in range(1, 12)]
    assert [pause // MINUTE_MS for pause in pauses] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]
    assert next_try(replace(failed, permanent=True), quiet="filled") == LONGEST_PAUSE_MS


def test_a_confirmed_silence_awaits_the_next_trade() -> None:
    """Where quiet minutes are left out, the candle after it comes with the ticks anyway."""
    for kind in ("silent", "empty"):
        quiet = hole(0, 1, kind, attempts=3)
        assert next_try(quiet, quiet="omitted") == 60 * MINUTE_MS
        assert next_try(quiet, quiet="filled") == 4 * MINUTE_MS


holes = st.lists(
    st.builds(
        lambda kind, at, attempts: (kind, at * MINUTE_MS, attempts),
        st.sampled_from(["failed", "silent", "empty", "rejected"]),
        st.integers(0, 30),
        st.integers(1, 6),
    ),
    max_size=8,
)


@given(holes, st.integers(0, 60), st.integers(0, 60))
def test_resting(kinds: list[tuple[HoleKind, int, int]], now: int, back_since: int) -> None:
    """Until its next try; not what failed before the exchange last answered."""
    known = tuple(
        hole(number, number + 1, kind, at=at, attempts=attempts)
        for number, (kind, at, attempts) in enumerate(kinds)
    )
    found = resting(
        SeriesCoverage(holes=known),
        now=now * MINUTE_MS,
        quiet="unknown",
        back_since=back_since * MINUTE_MS,
    )
    assert minutes(found) == {
        number
        for number, each in enumerate(known)
        if now * MINUTE_MS < next_try(each, quiet="unknown")
        and (each.kind != "failed" or each.at >= back_since * MINUTE_MS)
    }


# --- A day of ticks -------------------------------------------------------------------------------


class Day:
    """A day of ticks of one series: planned, answered, told; no exchange, no frames."""

    def __init__(self, came: Collection[int], **habits: Any) -> None:
        self.came = set(came)
        self.habits = Habits(**habits)
        self.coverage = SeriesCoverage()
        self.windows: list[int] = []
        self.most_holes = 0

    def tick(self, minute: int, *, error: str | None = None, back_since: int = 0) -> None:
        now = at(minute) + 5_000
        rest = resting(self.coverage, now=now, quiet=self.habits.quiet, back_since=back_since)
        windows = plan_windows(
            wanted=span(0, 1_440),
            coverage=self.coverage,
            timeframe="1m",
            now=now,
            habits=self.habits,
            reread=3,
            resting=rest,
        )
        self.windows.append(len(windows))
        for number, window in enumerate(windows):
            part = Interval(max(window.start, T0), min(window.end, at(1_440)))
            if error is None:
                self._answer(part, minute, now + number)
            else:
                self.coverage = self.coverage.failed(part, at=now + number, error=error)
        if self.habits.quiet == "omitted":
            (self.coverage,) = bridged([self.coverage])
        self.most_holes = max(self.most_holes, len(self.coverage.holes))

    def _answer(self, window: Interval, minute: int, now: int) -> None:
        (asked,) = numbered([window])
        final = [number for number in asked if number < minute]
        seen = [number for number in asked if number in self.came and number <= minute]
        settled = {number for number in final if number in self.came}
        if self.habits.quiet == "omitted" and settled:
            settled |= {number for number in final if min(seen) < number < max(seen)}
        judgement = Judgement(
            settled=candles(settled),
            rejected=(),
            silent=candles(set(final) - settled),
            empty=not seen,
        )
        self.coverage = self.coverage.answered(window, judgement, at=now)


def test_a_symbol_without_a_trade_all_day_costs_few_requests_and_little_room() -> None:
    """Every minute asks for the whole silence again: five windows a tick by the evening."""
    day = Day({0}, page=300, quiet="omitted")
    for minute in range(1, 1_440):
        day.tick(minute)
    assert day.most_holes < 40
    assert sum(day.windows) < 2 * 1_440
    assert minutes(day.coverage.settled) == {0}
    assert sum(each.end - each.start for each in day.coverage.holes) == 1_438 * MINUTE_MS


def test_a_trade_now_and_then_settles_all_that_is_quiet_between() -> None:
    """A coin with a trade every quarter of an hour on Coinbase: one request a tick, no hole left."""
    day = Day(range(0, 1_440, 15), page=300, quiet="omitted")
    for minute in range(1, 1_440):
        day.tick(minute)
    assert minutes(day.coverage.settled) == set(range(1_426))
    assert day.most_holes <= 5
    assert sum(day.windows) < 1.1 * 1_440


def test_a_symbol_that_fell_silent_is_asked_about_ever_more_rarely() -> None:
    """Binance serves BTC but nothing of one symbol: not four windows a tick for a day."""
    day = Day(range(100), page=300, quiet="filled")
    for minute in range(1, 1_440):
        day.tick(minute)
    assert sum(day.windows) < 1.5 * 1_440
    assert day.most_holes < 200
    every = sorted((each.start, each.end) for each in day.coverage.holes)
    assert all(one[1] == other[0] for one, other in pairwise(every))
    assert (every[0][0], every[-1][1]) == (at(100), at(1_439))
    asked_at = min(each.at for each in day.coverage.holes)
    assert at(1_440) - asked_at <= LONGEST_PAUSE_MS + 15 * MINUTE_MS


def test_an_exchange_that_comes_back_is_asked_for_all_at_once() -> None:
    """Twenty hours down: the pauses had grown to six hours, the first answer ends them."""
    day = Day(range(1_440), page=1_000, quiet="filled")
    for minute in range(1, 1_300):
        day.tick(minute, error="HTTP 503" if minute > 100 else None, back_since=at(100))
    assert sum(day.windows) < 1.1 * 1_300
    assert day.most_holes < 60
    day.tick(1_301, back_since=at(1_300.5))
    assert minutes(day.coverage.settled) == set(range(1_301))
    assert day.coverage.holes == ()


def test_a_fragmented_month_with_margins_is_planned_in_linear_time() -> None:
    """22,320 silent minutes: for each window all of them were looked through."""
    odd = range(1, 44_640, 2)
    known = tuple(hole(number, number + 1) for number in odd)
    settled = range(0, 44_640, 2)
    began = time.process_time()
    windows = plan(wanted=(0, 44_640), settled=settled, page=20, holes=known, quiet="omitted")
    assert len(windows) == ceil(44_639 / 20)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("second", "waits"), [(0, 3_000), (1.5, 1_500), (2.999, 1), (3, 0), (30, 0), (59.9, 0)]
)
def test_a_minute_run_waits_until_the_minute_before_is_final(second: float, waits: int) -> None:
    """Runs that start in hundredths of a second asked so early that each candle came a minute late."""
    now = T0 + 7 * MINUTE_MS + round(second * 1_000)
    assert settling_ms(now, settle_ms=2_000) == waits


def test_a_minute_run_never_waits_long() -> None:
    """An exchange that settles its candles for minutes: they come late, but the tick does not hang."""
    assert settling_ms(T0, settle_ms=300_000) == 11_000
