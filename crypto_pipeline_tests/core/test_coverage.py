"""Coverage against a model that remembers every minute by itself. Times are minutes, as integers."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife, bridged
from crypto_pipeline.core.holes import CONFIRMATIONS, Hole
from crypto_pipeline.core.intervals import Interval, Intervals, union
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.timeframes import MINUTE_MS

SERIES = Series("BTC/USDT", "1m")

Word = Literal["settled", "rejected", "silent"]


@dataclass(frozen=True)
class Call:
    """A request from ``start`` on: what it says of each minute that is final, or its failure."""

    start: int
    words: tuple[Word, ...]
    forming: int
    at: int
    empty: bool = False
    note: str = ""
    error: str | None = None
    permanent: bool = False

    @property
    def window(self) -> Interval:
        return Interval(self.start, self.start + len(self.words) + self.forming)

    @property
    def judgement(self) -> Judgement:
        return Judgement(
            settled=self.said("settled"),
            rejected=self.said("rejected"),
            silent=self.said("silent"),
            empty=self.empty,
            note=self.note,
        )

    def said(self, word: Word) -> Intervals:
        return each(self.start + i for i, other in enumerate(self.words) if other == word)


def each(minutes: object) -> Intervals:
    return union((minute, minute + 1) for minute in minutes)  # type: ignore[attr-defined]


def minutes(intervals: Intervals) -> set[int]:
    return {minute for interval in intervals for minute in range(*interval)}


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Calls in the order of time, some at the same time, some long after the one before."""
    at = draw(st.integers(0, 5))
    calls = []
    for _ in range(draw(st.integers(0, 14))):
        words = draw(
            st.lists(st.sampled_from(["settled", "rejected", "silent", "silent"]), max_size=10)
        )
        calls.append(
            Call(
                start=draw(st.integers(0, 12)),
                words=tuple(words),
                forming=draw(st.integers(0 if words else 1, 2)),
                at=at,
                empty=draw(st.booleans()) and "settled" not in words,
                note=draw(st.sampled_from(["", "price_not_finite (1)"])),
                error=draw(st.sampled_from([None, None, "HTTP 503", "cut"])),
                permanent=draw(st.booleans()),
            )
        )
        at += draw(st.sampled_from([0, 1, MINUTE_MS, 11 * MINUTE_MS]))
    return calls


def after(history: list[Call]) -> SeriesCoverage:
    coverage = SeriesCoverage()
    for call in history:
        coverage = told(coverage, call)
    return coverage


def told(coverage: SeriesCoverage, call: Call) -> SeriesCoverage:
    if call.error is not None:
        return coverage.failed(call.window, at=call.at, error=call.error, permanent=call.permanent)
    return coverage.answered(call.window, call.judgement, at=call.at)


class Model:
    """Every minute by itself: settled, or what was heard of it."""

    def __init__(self) -> None:
        self.settled: set[int] = set()
        self.heard: dict[int, Hole] = {}

    def told(self, call: Call) -> None:
        for minute in range(*call.window):
            old = self.heard.get(minute)
            if minute in self.settled:
                continue
            if call.error is not None:
                if old is not None and old.kind != "failed":
                    self.heard[minute] = replace(old, at=call.at)
                else:
                    self._heard(minute, call, "failed", call.error)
                continue
            position = minute - call.start
            word = call.words[position] if position < len(call.words) else None
            if word is None:
                if old is not None and old.kind == "failed":
                    del self.heard[minute]
            elif word == "settled":
                self.settled.add(minute)
                self.heard.pop(minute, None)
            elif word == "rejected":
                self._heard(minute, call, "rejected", call.note)
            else:
                self._heard(minute, call, "empty" if call.empty else "silent", call.note)

    def _heard(self, minute: int, call: Call, kind: str, note: str) -> None:
        old = self.heard.get(minute)
        self.heard[minute] = Hole(
            start=minute,
            end=minute + 1,
            kind=kind,  # type: ignore[arg-type]
            first_seen=call.at if old is None else old.first_seen,
            at=call.at,
            attempts=old.attempts + 1 if old is not None and old.kind == kind else 1,
            note=note,
            permanent=call.permanent and kind == "failed",
        )


# --- Any history ----------------------------------------------------------------------------------


@given(histories())
def test_coverage_of_any_history(history: list[Call]) -> None:
    """What is settled and what each hole is, is exact; merged holes say of a minute nothing that
    was not so: no proof too early, no request left out, no failure's pause cut short."""
    model, coverage = Model(), SeriesCoverage()
    for call in history:
        before = coverage
        coverage = told(coverage, call)
        model.told(call)
        assert minutes(coverage.settled) == model.settled
        assert minutes(before.settled) <= minutes(coverage.settled)
        by_minute = {m: hole for hole in coverage.holes for m in range(*hole.interval)}
        assert sum(hole.end - hole.start for hole in coverage.holes) == len(by_minute)
        assert by_minute.keys() == model.heard.keys()
        for minute, hole in by_minute.items():
            alone = model.heard[minute]
            assert (hole.kind, hole.permanent) == (alone.kind, alone.permanent)
            assert hole.confirmed == alone.confirmed
            assert hole.kind == "failed" or hole.note == alone.note
            assert hole.first_seen <= alone.first_seen
            assert hole.at <= alone.at
            assert hole.attempts >= alone.attempts
        assert list(coverage.holes) == sorted(coverage.holes, key=lambda hole: hole.start)
        assert coverage.settled == union(coverage.settled)
    answers = [call.at for call in history if call.error is None]
    assert coverage.answered_at == max(answers, default=None)


@given(histories(), st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=3))
def test_what_is_proven_is_no_hole_any_more(
    history: list[Call], proven: list[tuple[int, int]]
) -> None:
    """By candles around it, by all symbols' silence or by trades: settled, and the rest stays."""
    before = after(history)
    for found in (before.settle(proven), before.settle(proven, outage=True)):
        assert minutes(found.settled) == minutes(before.settled) | minutes(union(proven))
        left = {m: h for h in before.holes for m in range(*h.interval)}
        left = {m: h for m, h in left.items() if m not in minutes(union(proven))}
        assert {m for h in found.holes for m in range(*h.interval)} == left.keys()
    assert before.settle(proven).outages == ()
    assert before.settle(proven, outage=True).outages == union(proven)
    for start, end in union(proven):
        traded = before.traded(Interval(start, end), at=99 * MINUTE_MS)
        assert traded.by_trades == (Interval(start, end),)
        assert minutes(traded.settled) == minutes(before.settled) | set(range(start, end))
        assert traded.answered_at == max(99 * MINUTE_MS, before.answered_at or 0)


@given(
    st.dictionaries(
        st.builds(Series, st.text(), st.sampled_from(["1m", "1h"])),
        st.tuples(histories(), st.none() | st.builds(TradingLife, first=st.integers(0, 9))),
        max_size=3,
    )
)
@settings(max_examples=25)
def test_json_there_and_back(
    histories: dict[Series, tuple[list[Call], TradingLife | None]],
) -> None:
    """The file keeps everything, and equal coverage is equal text whatever order it grew in."""
    coverage = Coverage(
        {
            series: replace(after(history).settle([(90, 91)], outage=True), life=life).traded(
                Interval(95, 97), at=7
            )
            for series, (history, life) in histories.items()
        }
    )
    other = Coverage(dict(reversed(coverage.by_series.items())))
    assert Coverage.from_json(coverage.to_json()) == coverage
    assert coverage.to_json() == other.to_json()


# --- Silence between candles ----------------------------------------------------------------------

#: c settled, s silent, e empty once, E empty three times, f failed, r rejected, . never asked for.
STATES = "cccssssEEefr."


def part(states: str, start: int) -> SeriesCoverage:
    kinds = {"s": "silent", "e": "empty", "E": "empty", "f": "failed", "r": "rejected"}
    return SeriesCoverage(
        settled=each(start + i for i, state in enumerate(states) if state == "c"),
        holes=tuple(
            Hole(
                start=start + i,
                end=start + i + 1,
                kind=kinds[state],  # type: ignore[arg-type]
                first_seen=1,
                at=i,  # so that none merges
                attempts=CONFIRMATIONS if state == "E" else 1,
            )
            for i, state in enumerate(states)
            if state in kinds
        ),
    )


@given(st.lists(st.text(STATES, min_size=6, max_size=6), min_size=1, max_size=4))
@example(["cssccE", "EEEEEE", "sccccc"])
@example(["cssssf", "sssssc", "cecrcc"])
def test_silence_is_proven_between_candles_only(days: list[str]) -> None:
    """Over answers and days alike, and never across what failed, was refused or is unconfirmed."""
    whole = "".join(days)

    def proven(minute: int) -> bool:
        left, right = minute, minute
        while left >= 0 and whole[left] in "sE":
            left -= 1
        while right < len(whole) and whole[right] in "sE":
            right += 1
        enclosed = left >= 0 and right < len(whole) and whole[left] == whole[right] == "c"
        return whole[minute] == "c" or (whole[minute] in "sE" and enclosed)

    before = [part(states, 6 * day) for day, states in enumerate(days)]
    found = bridged(before)
    assert [minutes(each.settled) for each in found] == [
        {m for m in range(6 * day, 6 * day + 6) if proven(m)} for day in range(len(days))
    ]
    assert [{m for h in each.holes for m in range(*h.interval)} for each in found] == [
        {m for m in range(6 * day, 6 * day + 6) if not proven(m) and whole[m] in "sEefr"}
        for day in range(len(days))
    ]
    assert bridged(found) == found


def test_an_empty_answer_between_good_ones_proves_nothing_at_first() -> None:
    """The middle page of a backfill came back as ``[]``: asked three times, it is believed."""
    coverage = after([Call(0, ("settled",), 0, at=0), Call(9, ("settled",), 0, at=0)])
    for attempt in range(1, CONFIRMATIONS + 1):
        coverage = told(coverage, Call(1, ("silent",) * 8, 0, at=attempt, empty=True))
        proven = bridged([coverage])[0].settled == (Interval(0, 10),)
        assert proven == (attempt == CONFIRMATIONS)


# --- Trading lives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "first", "last"),
    [
        ("ssEcccss", 3, 6),
        ("ssecccee", 0, 8),  # unconfirmed: a lost page on the day of listing is no "not listed yet"
        ("sfscccfs", 0, 8),
        ("srsccc.s", 0, 8),
        ("ccccccss", 0, 6),
        (".ssccccc", 0, 8),
        ("ssssssss", 0, 8),
    ],
)
def test_a_life_to_the_candle(states: str, first: int, last: int) -> None:
    """Daily candles name the day; on it, answers silent from its first minute on say the rest."""
    life = TradingLife(first=0, last=8, evidence="daily candles")
    found = life.within(Interval(0, 8), part(states, 0))
    assert (found.first, found.last, found.evidence) == (first, last, "daily candles")


def test_a_life_is_not_cut_on_other_days() -> None:
    """Nor where it is not known."""
    known = part("sscccsss", 0)
    for life in (TradingLife(first=-8, last=16), TradingLife(first=8, last=0), TradingLife()):
        assert life.within(Interval(0, 8), known) == life


# --- Incidents ------------------------------------------------------------------------------------


def test_a_failed_reread_leaves_what_was_settled() -> None:
    """A tick that fails over 58–61 after 0–60 was settled is about 60–61 only."""
    coverage = after([Call(0, ("settled",) * 60, 0, at=1), Call(58, (), 3, at=2, error="HTTP 503")])
    assert coverage.settled == (Interval(0, 60),)
    assert coverage.holes == (
        Hole(start=60, end=61, kind="failed", first_seen=2, at=2, note="HTTP 503"),
    )


def test_an_answer_without_anything_final_settles_nothing() -> None:
    """Only the forming candle was asked for: it was answered, and will be asked for again."""
    assert after([Call(60, (), 1, at=5)]) == SeriesCoverage(answered_at=5)


def test_an_answer_by_a_clock_that_is_behind_forgets_no_hole() -> None:
    """The exchange's second server is a minute slow: minute 59 is no longer final by its word, and
    what was heard of it, and since when, is no less known for that. A failure is answered."""
    coverage = after([Call(59, ("silent",), 1, at=1), Call(59, (), 2, at=2)])
    assert coverage.holes == (Hole(start=59, end=60, kind="silent", first_seen=1, at=1),)
    assert after([Call(59, (), 2, at=1, error="cut"), Call(59, (), 2, at=2)]).holes == ()


def test_a_failure_does_not_hide_what_was_heard() -> None:
    """A refused candle that could not be asked for again is still refused, and was tried again."""
    coverage = after(
        [
            Call(0, ("rejected",), 0, at=1, note="price_not_positive (1)"),
            Call(0, ("silent",), 0, at=2, error="HTTP 503"),
        ]
    )
    (hole,) = coverage.holes
    assert (hole.kind, hole.note, hole.at) == ("rejected", "price_not_positive (1)", 2)


def test_a_minute_more_of_silence_takes_no_confirmations_away() -> None:
    """A quiet symbol's silence grows by a minute a tick. Asked as one window, and kept as one hole
    with the newest minute's count, it was never confirmed and never rested."""
    coverage = SeriesCoverage()
    for tick in range(1, 10):
        coverage = told(coverage, Call(0, ("silent",) * tick, 1, at=tick * MINUTE_MS, empty=True))
    told_of = [(tuple(hole.interval), hole.attempts) for hole in coverage.holes]
    assert told_of == [((0, 7), 9), ((7, 8), 2), ((8, 9), 1)]


def test_a_hole_is_asked_for_when_its_oldest_part_is_due() -> None:
    """A merged hole once took the newest request's time: while a silence grew, its beginning was
    never asked for again, and the ledger said that it had been a minute ago."""
    coverage = SeriesCoverage()
    for at in range(3):
        coverage = told(coverage, Call(0, ("silent",) * 5, 0, at=at))
    for at in range(5 * MINUTE_MS, 5 * MINUTE_MS + 3):
        coverage = told(coverage, Call(5, ("silent",) * 2, 0, at=at))
    assert [(tuple(hole.interval), hole.at) for hole in coverage.holes] == [((0, 7), 2)]
    for at in range(20 * MINUTE_MS, 20 * MINUTE_MS + 3):
        coverage = told(coverage, Call(7, ("silent",), 0, at=at))
    assert [tuple(hole.interval) for hole in coverage.holes] == [(0, 7), (7, 8)]


@pytest.mark.parametrize("error", [None, "HTTP 503"])
def test_a_night_of_ticks_in_vain_is_some_holes(error: str | None) -> None:
    """20 hours down, a tick a minute, the last four asked for again: 361 holes with an error text
    of up to 500 characters each stood in the file."""
    coverage = SeriesCoverage()
    for tick in range(4, 1_440):
        words: tuple[Word, ...] = ("silent",) * 4
        call = Call(tick - 4, words, 1, at=tick * MINUTE_MS, error=error and f"{tick}: {error}")
        coverage = told(coverage, call)
    assert sum(hole.end - hole.start for hole in coverage.holes) >= 1_439
    assert len(coverage.holes) < 1_440 // 5


def test_a_day_of_alternate_minutes_takes_no_square_of_time() -> None:
    """Half of the minutes quiet on an exchange of unknown habits: an answer took half a second of a
    series, a partition's ledger over a minute. Here twenty days in one."""
    words: tuple[Word, ...] = ("settled", "silent") * 14_400
    call = Call(0, words, 0, at=1, empty=True)
    began = time.process_time()
    coverage = SeriesCoverage()
    for _ in range(3):
        coverage = told(coverage, call)
    coverage = coverage.failed(call.window, at=9, error="HTTP 503").settle([(1, 2)])
    assert len(coverage.holes) == 14_399
    assert bridged([coverage])[0].settled == (Interval(0, 28_799),)
    assert time.process_time() - began < 15


def test_holes_are_written_briefly() -> None:
    """720 of them in each of 50 series are a file's largest part: fields that say nothing are not
    written."""
    coverage = Coverage({SERIES: part("scsc", 0)})
    (entry,) = json.loads(coverage.to_json())
    assert entry["holes"][0] == {"start": 0, "end": 1, "kind": "silent", "first_seen": 1, "at": 0}


def test_an_exchange_s_essay_is_cut() -> None:
    """An HTML page as an error message does not fill the file."""
    (hole,) = SeriesCoverage().failed(Interval(0, 1), at=0, error="x" * 10_000).holes
    assert len(hole.note) == 500


def test_how_far_answers_reached() -> None:
    """A failure says nothing of the exchange; silence does."""
    assert SeriesCoverage().reached is None
    assert SeriesCoverage().failed(Interval(0, 9), at=0, error="").reached is None
    assert part("cs", 0).reached == 2
    assert part("scf", 0).reached == 2


def test_a_series_never_asked_for_is_empty() -> None:
    """Absent and empty read the same; updating one series leaves the others."""
    one = Coverage().updated(SERIES, part("cc", 0))
    both = one.updated(Series("ETH/USDT", "1m"), SeriesCoverage())
    assert Coverage().of(SERIES) == SeriesCoverage()
    assert both.of(SERIES) == one.of(SERIES)
