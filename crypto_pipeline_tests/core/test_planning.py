"""Which windows are asked for: all that is missing and reachable, in as few requests as possible.

Candles are numbered here: candle ``i`` opens at ``T0 + i`` minutes.
"""

from functools import cache
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.intervals import Interval, union
from crypto_pipeline.core.planning import plan_windows
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline_tests.core.builders import T0


def at(candle: int) -> int:
    return T0 + candle * MINUTE_MS


def plan(
    *,
    wanted: tuple[int, int],
    settled: set[int] = frozenset(),
    forming: int = 10**6,
    page: int = 1_000,
    reread: int = 0,
    history: int | None = None,
) -> list[range]:
    """The windows as ranges of candle numbers; ``forming``: the candle that is open now."""
    windows = plan_windows(
        wanted=Interval(at(wanted[0]), at(wanted[1])),
        settled=union((at(candle), at(candle + 1)) for candle in settled),
        timeframe="1m",
        now=at(forming) + 12_345,
        page=page,
        reread=reread,
        history=history,
    )
    numbers = [((w.start - T0) / MINUTE_MS, (w.end - T0) / MINUTE_MS) for w in windows]
    assert all(start.is_integer() and end.is_integer() for start, end in numbers)
    return [range(int(start), int(end)) for start, end in numbers]


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
)
def test_plan(
    start: int,
    length: int,
    settled: set[int],
    forming: int,
    page: int,
    reread: int,
    history: int | None,
) -> None:
    """Against sets of candle numbers: nothing forgotten, nothing beyond reach, the fewest windows.

    A settled candle is asked for again only as a reread, or where it lies between two missing
    candles of one window.
    """
    oldest = start if history is None else max(start, forming - history)
    reachable = set(range(oldest, min(start + length, forming + 1)))
    missing = reachable - settled
    if reread:
        missing |= set(range(forming - reread - 1, forming)) & reachable

    windows = plan(
        wanted=(start, start + length),
        settled=settled,
        forming=forming,
        page=page,
        reread=reread,
        history=history,
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
    assert plan(wanted=(0, 1_440), settled=set(range(99)), forming=100, reread=3) == [
        range(96, 101)
    ]


def test_nothing_left_is_no_request() -> None:
    """A reread alone is no reason to ask: a settled day is left alone."""
    assert plan(wanted=(0, 1_440), settled=set(range(1_440)), reread=5) == []


def test_a_hole_in_the_past_is_no_open_end() -> None:
    """A retry asks for what failed, without rereading around it."""
    assert plan(wanted=(0, 60), settled=set(range(60)) - {7}, reread=5) == [range(7, 8)]


def test_a_fragmented_month_is_planned_in_linear_time() -> None:
    """Every second minute settled: 22,320 holes, planned at once rather than hole by hole by hole."""
    windows = plan(wanted=(0, 44_640), settled=set(range(0, 44_640, 2)), page=720)
    assert len(windows) == ceil(44_639 / 720)
