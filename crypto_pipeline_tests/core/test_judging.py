"""What one answer settles, against an oracle that looks at one candle after the other.

Candles are numbered here: candle ``i`` opens ``i`` lengths of its timeframe after midnight.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.answers import Answer, observations_of_all
from crypto_pipeline.core.intervals import Interval, intersect, union
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.judging import judge_answers, outages, runs
from crypto_pipeline.core.rules import FUTURE_TOLERANCE_MS
from crypto_pipeline.core.timeframes import timeframe_ms
from crypto_pipeline_tests.core.builders import T0, answer, at, candle, minutes, span

SETTLE_MS = 2_000
Quiet = Literal["filled", "omitted", "unknown"]


def judge(*answers: Answer, quiet: Quiet = "omitted") -> list[Judgement]:
    frame = observations_of_all(answers, run_id="run-1", settle_ms=SETTLE_MS)
    return judge_answers(answers, frame, quiet=quiet, settle_ms=SETTLE_MS)


def verdict(rows: list[Any], *, quiet: Quiet = "omitted", **facts: Any) -> Judgement:
    (judgement,) = judge(answer(rows, **facts), quiet=quiet)
    return judgement


# --- Any answer -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of an answer: which candle, and what is wrong with it."""

    slot: int
    kind: Literal["good", "bad", "off_grid", "no_time"]


class Case(NamedTuple):
    timeframe: str
    first: int
    size: int
    now_ms: int
    offset: int
    rows: list[Row]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    timeframe = draw(st.sampled_from(["1m", "15m", "1h"]))
    length = timeframe_ms(timeframe)
    kinds = st.sampled_from(["good"] * 6 + ["bad", "bad", "off_grid", "no_time"])
    return Case(
        timeframe=timeframe,
        first=draw(st.integers(0, 6)),
        size=draw(st.integers(1, 12)),
        now_ms=draw(st.integers(0, 20)) * length
        + draw(st.sampled_from([0, 1, 1_999, 2_000, 2_001, length - 5_000, length - 1])),
        offset=draw(st.sampled_from([0, -4_000, 90_000])),
        rows=draw(st.lists(st.builds(Row, st.integers(0, 20), kinds), max_size=10)),
    )


def answered(case: Case) -> Answer:
    length = timeframe_ms(case.timeframe)
    rows: list[object] = []
    for row in case.rows:
        time = T0 + row.slot * length
        rows.append(
            {
                "good": [time, 10.0, 12.0, 9.0, 11.0, 1.0],
                "bad": [time, 10.0, 12.0, 9.0, -11.0, 1.0],
                "off_grid": [time + 1_000, 10.0, 12.0, 9.0, 11.0, 1.0],
                "no_time": ["soon", 10.0, 12.0, 9.0, 11.0, 1.0],
            }[row.kind]
        )
    window = Interval(T0 + case.first * length, T0 + (case.first + case.size) * length)
    return answer(
        rows, now=T0 + case.now_ms, offset=case.offset, window=window, timeframe=case.timeframe
    )


class Verdict(NamedTuple):
    settled: set[int]
    rejected: set[int]
    silent: set[int]
    empty: bool


def oracle(case: Case, quiet: Quiet) -> Verdict:
    length = timeframe_ms(case.timeframe)

    def opens(slot: int) -> int:
        return slot * length

    started = [
        row.slot
        for row in case.rows
        if row.kind in ("good", "bad") and opens(row.slot) <= case.now_ms
    ]

    def final(slot: int) -> bool:
        closed = opens(slot) + length + SETTLE_MS <= case.now_ms
        return closed or any(later > slot for later in started)

    def future(row: Row) -> bool:
        time = opens(row.slot) + (1_000 if row.kind == "off_grid" else 0)
        return row.kind != "no_time" and time > case.now_ms + FUTURE_TOLERANCE_MS

    good = {row.slot for row in case.rows if row.kind == "good" and not future(row)}
    came = {slot for slot in good if final(slot)}
    broken = {
        row.slot for row in case.rows if row.kind in ("bad", "off_grid") or future(row)
    } - came
    astray = any(row.kind in ("off_grid", "no_time") or future(row) for row in case.rows)
    window = range(case.first, case.first + case.size)
    found = Verdict(set(), set(), set(), not good & set(window))
    for slot in window:
        enclosed = any(s < slot for s in came) and any(s > slot for s in good)
        if not final(slot):
            continue
        if slot in came:
            found.settled.add(slot)
        elif slot in broken or astray:
            found.rejected.add(slot)
        elif quiet == "omitted" and enclosed:
            found.settled.add(slot)
        else:
            found.silent.add(slot)
    return found


@given(cases(), st.sampled_from(["filled", "omitted", "unknown"]))
def test_any_answer(case: Case, quiet: Quiet) -> None:
    """Each candle of the final part of the window is settled, rejected or silent, never two."""
    length = timeframe_ms(case.timeframe)
    (judgement,) = judge(answered(case), quiet=quiet)

    def slots(intervals: Any) -> set[int]:
        return {
            (time - T0) // length for start, end in intervals for time in range(start, end, length)
        }

    found = Verdict(
        slots(judgement.settled),
        slots(judgement.rejected),
        slots(judgement.silent),
        judgement.empty,
    )
    assert found == oracle(case, quiet)
    for part in (judgement.settled, judgement.rejected, judgement.silent):
        assert part == union(part)


@given(st.lists(cases(), max_size=5))
def test_answers_are_judged_each_by_its_own_rows(several: list[Case]) -> None:
    """Judged together, as a run does it, they come to what they come to apart."""
    answers = [answered(case) for case in several]
    together = judge(*answers) if answers else []
    assert together == [judge(one)[0] for one in answers]


@given(cases(), st.integers(0, 20), st.integers(0, 20))
def test_a_part_of_a_verdict(case: Case, start: int, end: int) -> None:
    """What a partition is told of an answer that reaches over midnight."""
    length = timeframe_ms(case.timeframe)
    bounds = Interval(T0 + start * length, T0 + end * length)
    (whole,) = judge(answered(case))
    part = whole.within(bounds)
    for name in ("settled", "rejected", "silent"):
        assert getattr(part, name) == intersect(getattr(whole, name), bounds)
    assert (part.empty, part.note) == (whole.empty, whole.note)


@given(st.sets(st.integers(0, 40)), st.sampled_from([1, 7]))
def test_runs(numbers: set[int], length: int) -> None:
    """The maximal intervals; duplicates and any order are one candle each."""
    times = np.array([n * length for n in [*sorted(numbers, reverse=True), *numbers]], np.int64)
    assert runs(times, length) == union((n * length, (n + 1) * length) for n in numbers)


# --- Incidents ------------------------------------------------------------------------------------


def test_an_empty_answer_settles_nothing() -> None:
    """ccxt makes ``[]`` of an HTML page: a day of candles was once "without trades"."""
    judgement = verdict([])
    assert judgement.settled == judgement.rejected == ()
    assert minutes(judgement.silent) == set(range(10))
    assert judgement.empty


def test_a_quiet_minute_between_candles_is_settled() -> None:
    """Coinbase leaves it out; minutes before the first and after the last candle stay open."""
    judgement = verdict([candle(2), candle(6)])
    assert minutes(judgement.settled) == {2, 3, 4, 5, 6}
    assert minutes(judgement.silent) == {0, 1, 7, 8, 9}
    assert not judgement.empty


@pytest.mark.parametrize("quiet", ["filled", "unknown"])
def test_a_missing_minute_of_others_is_not_settled(quiet: Quiet) -> None:
    """Binance serves a flat candle for a quiet minute: one that is missing is lost."""
    judgement = verdict([candle(2), candle(6)], quiet=quiet)
    assert minutes(judgement.settled) == {2, 6}
    assert minutes(judgement.silent) == set(range(10)) - {2, 6}


def test_the_forming_candle_encloses_the_minutes_before_it() -> None:
    """At 00:07:30 candle 7 is forming: 4 to 6 are over and without a trade; 7 is not settled."""
    judgement = verdict([candle(3), candle(7)], now=at(7.5))
    assert minutes(judgement.settled) == {3, 4, 5, 6}
    assert judgement.silent == (span(0, 3),)


def test_a_minute_that_just_closed_is_not_yet_silent() -> None:
    """One second after its close a candle may still come: it is neither settled nor a hole."""
    early = verdict([candle(0), candle(4)], now=at(6) + SETTLE_MS - 1)
    assert early.silent == ()
    late = verdict([candle(0), candle(4)], now=at(6) + SETTLE_MS)
    assert minutes(late.silent) == {5}


def test_an_exchange_s_clock_that_is_behind_decides() -> None:
    """Ours says candle 5 is over, theirs does not: it is not settled by what may still change."""
    rows = [candle(minute) for minute in range(6)]
    judgement = verdict(rows, now=at(6) - 2_000, offset=-4_000)
    assert minutes(judgement.settled) == {0, 1, 2, 3, 4}
    assert judgement.silent == ()


@pytest.mark.parametrize(
    "stray",
    [
        [at(3) + 1_000, 10, 12, 9, 11, 1],  # off the grid
        [None, 10, 12, 9, 11, 1],  # no time at all
        ["oops"],
        [at(100), 10, 12, 9, 11, 1],  # tomorrow's: the clock shows minute 20
        "<html>",
    ],
)
def test_a_row_that_belongs_nowhere_proves_no_absence(stray: object) -> None:
    """It may stand for any candle that is absent, which as silence would have been proof where the
    answer met another one; those that came are settled all the same."""
    judgement = verdict([candle(0), candle(5), stray], now=at(20))
    assert minutes(judgement.settled) == {0, 5}
    assert minutes(judgement.rejected) == {1, 2, 3, 4, 6, 7, 8, 9}
    assert judgement.silent == ()


def test_a_refused_row_is_no_quiet_minute() -> None:
    """Candle 3 came with a close of NaN: it was there, and must not become "no trades"."""
    judgement = verdict([candle(0), candle(3, close=math.nan), candle(5)])
    assert minutes(judgement.rejected) == {3}
    assert minutes(judgement.settled) == {0, 1, 2, 4, 5}
    assert "price_not_finite (1)" in judgement.note


def test_a_good_row_beside_a_refused_one_settles_the_candle() -> None:
    """Only a slot whose only row broke a rule is rejected."""
    judgement = verdict([candle(0), candle(3, close=-1.0), candle(3), candle(5)])
    assert judgement.rejected == ()
    assert 3 in minutes(judgement.settled)


def test_candles_nobody_asked_for_do_not_confirm_silence() -> None:
    """An exchange that ignores ``since`` sent its newest candles for a window of last week; at once
    the whole window was confirmed silence, and "no trades" where it met its neighbours."""
    judgement = verdict([candle(minute) for minute in range(500, 510)])
    assert judgement.empty
    assert minutes(judgement.silent) == set(range(10))


def test_a_candle_beyond_the_window_encloses_too() -> None:
    """KuCoin knows no ``until``: its rows go on, and show what lies between."""
    judgement = verdict([candle(8), candle(12)])
    assert minutes(judgement.settled) == {8, 9}
    assert not judgement.empty


# --- Outages --------------------------------------------------------------------------------------


def silence(*parts: tuple[int, int, int]) -> list[tuple[Interval, int]]:
    return [(span(start, end), attempts) for start, end, attempts in parts]


BOUNDS = span(0, 60)
AROUND = (span(0, 20), span(30, 60))


def test_all_symbols_silent_with_candles_around_is_an_outage() -> None:
    """Binance was down from 20 to 30: its flat candles are missing for every symbol."""
    found = outages(
        [silence((20, 30, 1)), silence((18, 31, 1))],
        [AROUND, (span(0, 18), span(31, 60))],
        bounds=BOUNDS,
    )
    assert found == (span(20, 30),)


def test_one_symbol_s_silence_is_no_outage() -> None:
    """The other one traded: its candles are lost, and stay asked for."""
    assert outages([silence((20, 30, 9)), []], [AROUND, (BOUNDS,)], bounds=BOUNDS) == ()
    half = [silence((20, 30, 9)), silence((24, 26, 9))]
    others = [AROUND, (span(0, 24), span(26, 60))]
    assert outages(half, others, bounds=BOUNDS) == (span(24, 26),)


def test_an_unanswered_symbol_s_word_is_awaited() -> None:
    """BTC was silent from 20 to 30; the request for ETH failed from 20 to 25."""
    found = outages(
        [silence((20, 30, 9)), silence((25, 30, 9))],
        [AROUND, (span(0, 20), span(30, 60))],
        bounds=BOUNDS,
    )
    assert found == ()


@pytest.mark.parametrize(("attempts", "proven"), [(1, False), (2, False), (3, True)])
def test_a_single_symbol_must_be_asked_three_times(attempts: int, proven: bool) -> None:
    """One symbol's silence may be its own."""
    found = outages([silence((20, 30, attempts))], [AROUND], bounds=BOUNDS)
    assert found == ((span(20, 30),) if proven else ())


@pytest.mark.parametrize(("attempts", "proven"), [(1, False), (3, True)])
def test_a_delisted_symbol_is_no_second_witness(attempts: int, proven: bool) -> None:
    """LUNA has been silent for years: with it, every minute BTC lost was an outage at once."""
    found = outages(
        [silence((20, 30, attempts)), silence((0, 60, attempts))], [AROUND, ()], bounds=BOUNDS
    )
    assert found == ((span(20, 30),) if proven else ())
    ended = outages(
        [silence((20, 30, attempts)), silence((10, 60, attempts))],
        [AROUND, (span(0, 10),)],
        bounds=BOUNDS,
    )
    assert ended == ((span(20, 30),) if proven else ())


@pytest.mark.parametrize(("attempts", "proven"), [(2, False), (3, True)])
def test_at_the_partition_s_ends_silence_must_be_confirmed(attempts: int, proven: bool) -> None:
    """No candle of yesterday is at hand to enclose it."""
    for start, end, there in ((0, 10, span(10, 60)), (50, 60, span(0, 50)), (0, 60, None)):
        settled = () if there is None else (there,)
        found = outages([silence((start, end, attempts))] * 2, [settled, settled], bounds=BOUNDS)
        assert found == ((span(start, end),) if proven else ())


def test_silence_that_no_candle_encloses_is_no_outage() -> None:
    """Up to now, in the middle of the day: whether it is over is not known."""
    silent = [silence((20, 30, 9))] * 2
    assert outages(silent, [(span(0, 20),)] * 2, bounds=BOUNDS) == ()
    assert outages(silent, [(span(30, 60),)] * 2, bounds=BOUNDS) == ()
    assert outages([], [], bounds=BOUNDS) == ()


states = st.lists(st.sampled_from("cccs.1"), min_size=12, max_size=12)


@given(st.lists(states, min_size=1, max_size=4), st.integers(1, 4))
def test_outages_of_any_day(rows: list[list[str]], attempts: int) -> None:
    """Minute by minute: c a candle, s silence asked often, 1 asked once, . not known."""
    silent = [
        [
            (span(m, m + 1), attempts if state == "s" else 1)
            for m, state in enumerate(row)
            if state in "s1"
        ]
        for row in rows
    ]
    settled = [union(span(m, m + 1) for m, state in enumerate(row) if state == "c") for row in rows]
    found = minutes(outages(silent, settled, bounds=span(0, 12)))

    everyone = [all(row[m] in "s1" for row in rows) for m in range(12)]
    expected: set[int] = set()
    for first in (m for m in range(12) if everyone[m] and not (m and everyone[m - 1])):
        end = next((m for m in range(first, 12) if not everyone[m]), 12)
        asked = min(attempts if row[m] == "s" else 1 for row in rows for m in range(first, end))
        before = any(row[first - 1] == "c" for row in rows) if first else asked >= 3
        after = any(row[end] == "c" for row in rows) if end < 12 else asked >= 3
        trading = sum("c" in row[:first] and "c" in row[end:] for row in rows)
        if before and after and (trading >= 2 or asked >= 3):
            expected |= set(range(first, end))
    assert found == expected
