"""The gaps of a partition and their causes, against a naive reading minute by minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife
from crypto_pipeline.core.gaps import CAUSES, PROVEN, Gap, PartitionState
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.holes import Hole
from crypto_pipeline.core.intervals import Interval, Intervals, union
from crypto_pipeline.core.ledger import PartitionFacts, partition_gaps
from crypto_pipeline.core.planning import LONGEST_PAUSE_MS, next_try
from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms
from crypto_pipeline_tests.core.builders import T0, at, minutes, span

BTC, ETH = Series("BTC/USDT", "1m"), Series("ETH/USDT", "1m")
LATER = at(3 * 1_440)

KINDS = {"F": "failed", "S": "silent", "E": "empty", "R": "rejected"}


def numbers(states: str, letters: str) -> Intervals:
    return union(span(m, m + 1) for m, state in enumerate(states) if state in letters)


def known(states: str, **facts: Any) -> SeriesCoverage:
    """By minute: c a candle, n a proven absence, O an outage, T built from trades, l lost though
    settled, F S E R holes of those kinds, . never asked for."""
    return SeriesCoverage(
        **{
            "settled": numbers(states, "cnOTl"),
            "outages": numbers(states, "O"),
            "by_trades": numbers(states, "T"),
            "holes": tuple(
                Hole(
                    start=at(minute),
                    end=at(minute + 1),
                    kind=KINDS[state],  # type: ignore[arg-type]
                    first_seen=T0 - 5 + minute,
                    at=T0 + minute,
                    attempts=1 + minute % 4,
                    note="a note",
                )
                for minute, state in enumerate(states)
                if state in KINDS
            ),
            "answered_at": T0 + 77,
        }
        | facts
    )


def facts(
    states: dict[Series, str], *, now: int = LATER, due_before: int | None = None, **others: Any
) -> PartitionFacts:
    """A partition as long as its texts, asked about long after unless said otherwise."""
    return PartitionFacts(
        **{
            "bounds": span(0, max(map(len, states.values()))),
            "series": list(states),
            "coverage": Coverage({series: known(text) for series, text in states.items()}),
            "stored": {series: numbers(text, "c") for series, text in states.items()},
            "habits": Habits(quiet="filled"),
            "now": now,
            "due_before": now if due_before is None else due_before,
        }
        | others
    )


def causes(gaps: Collection[Gap], series: Series = BTC) -> dict[int, str]:
    return {
        minute: gap.cause
        for gap in gaps
        if (gap.symbol, gap.timeframe) == series
        for minute in minutes([(gap.start, gap.end)])
    }


def texts(gaps: Collection[Gap]) -> list[tuple[int, int, str]]:
    return [((gap.start - T0) // MINUTE_MS, (gap.end - T0) // MINUTE_MS, gap.cause) for gap in gaps]


# --- Any partition --------------------------------------------------------------------------------

LETTERS = "cccnOTlFSER..."


@st.composite
def partitions(draw: st.DrawFn) -> tuple[dict[Series, str], PartitionFacts]:
    size = draw(st.integers(1, 14))
    text = st.text(LETTERS, min_size=size, max_size=size)
    states = {series: draw(text) for series in (BTC, ETH)[: draw(st.integers(1, 2))]}
    now = draw(st.sampled_from([LATER, at(size) + 3_000, at(max(1, size - 3)) + 3_000]))
    end = draw(st.none() | st.integers(0, size))
    life = draw(
        st.none()
        | st.builds(
            lambda first, last: TradingLife(
                first=None if first is None else at(first),
                last=None if last is None else at(last),
                evidence="its first daily candle is this one",
            ),
            st.none() | st.integers(0, size),
            st.none() | st.integers(0, size),
        )
    )
    whole = facts(
        states,
        now=now,
        due_before=now if end is None else at(end) + 500,
        habits=Habits(
            quiet=draw(st.sampled_from(["filled", "unknown", "omitted"])),
            history=draw(st.none() | st.integers(1, 20)),
            trades=draw(st.booleans()),
        ),
    )
    coverage = replace(whole.coverage.of(BTC), life=life)
    return states, replace(whole, coverage=whole.coverage.updated(BTC, coverage))


def cause_of(minute: int, state: str, facts: PartitionFacts, series: Series) -> str:
    """Read off one minute; outages by chance are too rare for texts so short."""
    life = facts.coverage.of(series).life or TradingLife()
    if life.first is not None and at(minute) < life.first:
        return "not_listed_yet"
    if life.last is not None and at(minute) >= life.last:
        return "delisted"
    if state in "OT":
        return {"O": "exchange_outage", "T": "no_trades"}[state]
    if state in "nl":
        return "no_trades" if facts.habits.quiet == "omitted" else "unknown"
    history = facts.habits.history
    forming = (facts.now - T0) // MINUTE_MS
    if history is not None and not facts.habits.trades and minute < forming - history:
        return "beyond_history"
    return {"F": "fetch_failed", "R": "rejected"}.get(state, "unknown")


@given(partitions())
def test_any_partition(case: tuple[dict[Series, str], PartitionFacts]) -> None:
    """Gaps are exactly what is due and not stored, each once, each with its cause; proven causes
    are never tried again, others always are; the sums are those of the gaps."""
    states, facts = case
    gaps, state = partition_gaps(facts)
    expected = Counter[Series]()
    for series, text in states.items():
        mine = [gap for gap in gaps if (gap.symbol, gap.timeframe) == series]
        assert mine == sorted(mine, key=lambda gap: gap.start)
        found = causes(gaps, series)
        assert sum(gap.end - gap.start for gap in mine) == len(found) * MINUTE_MS
        due = range(min(len(text), (facts.due_before - T0) // MINUTE_MS))
        awaited = set(due) - found.keys() - {m for m in due if text[m] == "c"}
        if awaited:  # the silence up to now, where quiet minutes are left out
            assert facts.habits.quiet == "omitted"
            assert facts.due_before < facts.bounds.end
            assert awaited == set(range(min(awaited), len(due)))
            assert {text[m] for m in awaited} <= set("SE")
        for minute, cause in found.items():
            assert cause == cause_of(minute, text[minute], facts, series)
            assert text[minute] != "c"
        expected[series] = len(due) - len(awaited)
    for gap in gaps:
        assert gap.cause in CAUSES
        assert gap.evidence
        assert (gap.next_retry is None) == (gap.cause in PROVEN)
        assert facts.bounds.start <= gap.start < gap.end <= facts.bounds.end
    assert gaps == sorted(
        gaps, key=lambda gap: (list(states).index((gap.symbol, gap.timeframe)), gap.start)
    )
    assert state.expected == expected.total()
    assert state.missing == Counter(
        cause for series in states for cause in causes(gaps, series).values()
    )
    assert state.stored + sum(state.missing.values()) == state.expected
    assert state.complete == all(gap.cause in PROVEN for gap in gaps)
    assert state.unproven == sum(
        (gap.end - gap.start) // MINUTE_MS for gap in gaps if gap.cause not in PROVEN
    )
    assert (state.answered_at, state.checked_at) == (T0 + 77, facts.now)


def test_a_count_that_does_not_add_up_is_not_complete() -> None:
    """Complete is what is shown to be: not merely the absence of gaps."""
    state = PartitionState(expected=3, stored=2, missing={}, answered_at=None, checked_at=0)
    assert not state.complete
    assert replace(state, missing={"no_trades": 1}).complete
    assert not replace(state, missing={"unknown": 1}).complete


# --- Causes ---------------------------------------------------------------------------------------


def test_each_state_has_its_cause() -> None:
    """The whole list, on an exchange that leaves quiet minutes out."""
    gaps, state = partition_gaps(facts({BTC: "cncOTFSER."}, habits=Habits(quiet="omitted")))
    assert texts(gaps) == [
        (1, 2, "no_trades"),
        (3, 4, "exchange_outage"),
        (4, 5, "no_trades"),
        (5, 6, "fetch_failed"),
        (6, 7, "unknown"),
        (7, 8, "unknown"),
        (8, 9, "rejected"),
        (9, 10, "unknown"),
    ]
    assert (state.expected, state.stored, state.unproven) == (10, 2, 5)


def test_an_absent_minute_of_an_exchange_that_fills_is_never_without_trades() -> None:
    """A candle that is said to have come and is not stored is lost, and is said to be."""
    (gap,), state = partition_gaps(facts({BTC: "clc"}))
    assert gap.cause == "unknown"
    assert "not among the validated candles" in gap.evidence
    assert not state.complete


def test_what_cannot_be_asked_for_again_is_no_tight_loop() -> None:
    """Settled is never asked for again. Due at once, such a gap had a run launched for its day
    every 30 seconds, which asked for nothing."""
    (gap,), _ = partition_gaps(facts({BTC: "clc"}))
    assert gap.next_retry == LATER + LONGEST_PAUSE_MS


def test_a_hole_says_when_it_was_asked_for_and_will_be() -> None:
    """What the ledger's reader needs: since when, how often, last, next, and the error."""
    (gap,), _ = partition_gaps(facts({BTC: "cFc"}))
    hole = known("cFc").holes[0]
    assert (gap.first_seen, gap.last_checked) == (hole.first_seen, hole.at)
    assert gap.next_retry == next_try(hole, quiet="filled")
    assert "asked 2 times" in gap.evidence
    assert "a note" in gap.evidence


def test_never_asked_for_is_due_since_it_closed() -> None:
    """Also in a partition of which nothing is known at all."""
    gaps, state = partition_gaps(facts({BTC: "....", ETH: "...."}, coverage=Coverage(), stored={}))
    assert [(gap.symbol, gap.cause, gap.next_retry) for gap in gaps] == [
        ("BTC/USDT", "unknown", at(4)),
        ("ETH/USDT", "unknown", at(4)),
    ]
    assert state.answered_at is None
    assert (state.expected, state.stored) == (8, 0)


def test_a_candle_that_was_stored_after_all_is_no_gap() -> None:
    """A late correction of a minute that was proven quiet: the row counts."""
    late = facts({BTC: "cnc"}, habits=Habits(quiet="omitted"), stored={BTC: (span(0, 3),)})
    assert partition_gaps(late)[0] == []


def test_beyond_history_is_for_those_without_another_way() -> None:
    """Kraken's trades reach further than its candles: nothing is out of reach there."""
    lost = facts({BTC: "....c"}, now=at(8) + 5, due_before=at(5), habits=Habits(history=6))
    assert texts(partition_gaps(lost)[0]) == [(0, 2, "beyond_history"), (2, 4, "unknown")]
    trades = replace(lost, habits=Habits(history=6, trades=True))
    assert texts(partition_gaps(trades)[0]) == [(0, 4, "unknown")]


def test_several_timeframes_are_counted_in_their_own_candles() -> None:
    """An hour is one candle of 1h and sixty of 1m; neither answers for the other."""
    hourly = Series("BTC/USDT", "1h")
    gaps, state = partition_gaps(
        facts(
            {BTC: "c" * 120},
            series=[BTC, hourly],
            coverage=Coverage(
                {BTC: known("c" * 120), hourly: SeriesCoverage(settled=(span(0, 60),))}
            ),
            stored={BTC: (span(0, 120),), hourly: (span(0, 60),)},
        )
    )
    assert (state.expected, state.stored, state.missing) == (122, 121, {"unknown": 1})
    assert [(gap.timeframe, gap.start, gap.end) for gap in gaps] == [("1h", at(60), at(120))]


@pytest.mark.parametrize("timeframe", ["1m", "1h", "1d"])
def test_what_has_not_closed_is_not_due(timeframe: str) -> None:
    """Ten minutes to midnight: no candle of the day, 23 of the hour."""
    due, length = at(1_430) + 59_000, timeframe_ms(timeframe)
    series = Series("BTC/USDT", timeframe)
    today = facts({series: ""}, bounds=span(0, 1_440), now=due + 5, due_before=due)
    _, state = partition_gaps(today)
    assert state.expected == (due - T0) // length


def test_a_day_before_the_exchange_s_start_expects_nothing() -> None:
    """Its bounds are empty, and due only after them."""
    gaps, state = partition_gaps(facts({BTC: ""}, due_before=T0 - MINUTE_MS))
    assert (gaps, state.expected, state.complete) == ([], 0, True)


# --- Silence where quiet minutes are left out -----------------------------------------------------

QUIET = Habits(quiet="omitted")


def today(text: str, minute: int) -> PartitionFacts:
    return facts(
        {BTC: text},
        bounds=span(0, 1_440),
        now=at(minute) + 9,
        due_before=at(minute) + 9,
        habits=QUIET,
    )


def test_the_next_trade_is_awaited_not_missed() -> None:
    """A coin with a trade every other minute: its last three are not "unknown" yet."""
    gaps, state = partition_gaps(today("cn" * 30 + "cSES", 64))
    assert set(causes(gaps).values()) == {"no_trades"}
    assert (state.expected, state.complete) == (61, True)


def test_a_silence_too_long_for_its_symbol_is_missed() -> None:
    """BTC has a candle every minute: half an hour of silence up to now is no quiet time."""
    gaps, state = partition_gaps(today("c" * 200 + "S" * 30, 230))
    assert set(causes(gaps)) == set(range(200, 230))
    assert not state.complete


def test_a_silence_from_the_first_minute_is_missed() -> None:
    """Nothing says how quiet the symbol is: a feed that never came would have looked complete."""
    gaps, state = partition_gaps(today("E" * 90, 90))
    assert len(causes(gaps)) == state.unproven == 90


def test_after_the_day_every_minute_is_due() -> None:
    """The end of a day that is over awaits nothing: it is asked about until it is proven."""
    gaps, state = partition_gaps(
        facts({BTC: "cn" * 30 + "S"}, bounds=span(0, 61), now=LATER, habits=QUIET)
    )
    assert causes(gaps)[60] == "unknown"
    assert not state.complete


def test_everybody_s_silence_is_an_outage_where_chance_does_not_explain_it() -> None:
    """Two busy symbols of Coinbase were silent for twenty minutes; one minute is chance."""
    busy = "c" * 100 + "n" * 20 + "c" * 50 + "n" + "c" * 50
    gaps, state = partition_gaps(facts({BTC: busy, ETH: busy}, habits=QUIET))
    for series in (BTC, ETH):
        found = causes(gaps, series)
        assert {found[m] for m in range(100, 120)} == {"exchange_outage"}
        assert found[170] == "no_trades"
    assert state.complete
    alone, _ = partition_gaps(facts({BTC: busy}, habits=QUIET))
    assert {gap.cause for gap in alone} == {"no_trades"}
    other, _ = partition_gaps(facts({BTC: busy, ETH: "c" * len(busy)}, habits=QUIET))
    assert {gap.cause for gap in other} == {"no_trades"}


def test_two_quiet_symbols_make_no_outage() -> None:
    """A trade every ten minutes each: twenty minutes without one are nothing."""
    quiet = ("c" + "n" * 9) * 10 + "n" * 20 + ("c" + "n" * 9) * 10
    gaps, _ = partition_gaps(facts({BTC: quiet, ETH: quiet}, habits=QUIET))
    assert {gap.cause for gap in gaps} == {"no_trades"}


def test_an_outage_is_claimed_only_of_what_is_proven_absent() -> None:
    """All were silent, but for one the requests failed: that is what its gap says."""
    busy = "c" * 100 + "{}" + "c" * 100
    gaps, _ = partition_gaps(
        facts({BTC: busy.format("n" * 30), ETH: busy.format("F" * 30)}, habits=QUIET)
    )
    assert set(causes(gaps, BTC).values()) == {"exchange_outage"}
    assert set(causes(gaps, ETH).values()) == {"fetch_failed"}


# --- Size -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", ["filled", "omitted"])
def test_a_torn_day_of_many_symbols_takes_no_square_of_time(quiet: Any) -> None:
    """1,440 alternate minutes of 50 series took 73 seconds; of 10 days' worth of one series, more
    than that."""
    text = "cS" * 7_200
    torn = facts({BTC: text, ETH: text}, now=at(20_000), habits=Habits(quiet=quiet))
    began = time.process_time()
    gaps, state = partition_gaps(torn)
    assert len(gaps) == state.unproven == 14_400
    assert time.process_time() - began < 15


def test_gaps_lie_inside_the_partition() -> None:
    """Coverage may know more than the partition's bounds, which begin with the exchange's start."""
    inside = facts({BTC: "ccFFFc"}, bounds=Interval(at(3), at(5)))
    assert texts(partition_gaps(inside)[0]) == [(3, 4, "fetch_failed"), (4, 5, "fetch_failed")]
