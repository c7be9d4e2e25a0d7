"""Answers and failures, sorted by partition: nothing lost at midnight, nothing settled unproven."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.corridor.day_book import DayBook, proven, unsettled
from crypto_pipeline.corridor.requests import FailedRequest
from crypto_pipeline.corridor.trade_history import TradeCandles
from crypto_pipeline.errors import ExchangeUnavailable, RequestRefused
from crypto_pipeline_tests.core.builders import (
    DAY,
    T0,
    answer,
    at,
    candle,
    minutes,
    observations,
    span,
)

BTC, ETH = Series("BTC/USDT", "1m"), Series("ETH/USDT", "1m")
TOMORROW = DAY + timedelta(days=1)
MIDNIGHT = 1_440
OMITTED, FILLED = Habits(quiet="omitted"), Habits(quiet="filled")


def book(habits: Habits = OMITTED, *answers: Answer) -> DayBook:
    kept = DayBook(habits, {}, run_id="run-1")
    for each in answers:
        kept.answer(each)
    kept.parse()
    return kept


def told(kept: DayBook, day: date = DAY, *, before: Coverage | None = None) -> Coverage:
    change = kept.findings(day)
    assert change is not None
    return change(before or Coverage())


def served(start: int, end: int, *, without: Collection[int] = (), **facts: Any) -> Answer:
    """A good answer for these minutes, but for those that are left out."""
    rows = [candle(minute) for minute in range(start, end) if minute not in without]
    return answer(rows, **{"window": span(start, end), "now": at(3 * MIDNIGHT)} | facts)


def holes(known: SeriesCoverage) -> list[tuple[int, int, str]]:
    return [
        ((each.start - T0) // MINUTE_MS, (each.end - T0) // MINUTE_MS, each.kind)
        for each in known.holes
    ]


def opens(frame: pd.DataFrame) -> list[int]:
    return [(time - T0) // MINUTE_MS for time in times_ms(frame["open_time"]).tolist()]


# --- Partitions -----------------------------------------------------------------------------------


def test_a_window_over_midnight_is_told_to_both_days() -> None:
    """Each partition gets its rows and its part of the finding, and neither those of the other."""
    kept = book(OMITTED, served(1_435, 1_445))
    for day, expected in ((DAY, range(1_435, 1_440)), (TOMORROW, range(1_440, 1_445))):
        assert opens(kept.rows(day)) == list(expected)
        assert minutes(told(kept, day).of(BTC).settled) == set(expected)


def test_what_was_taken_out_is_not_told_twice() -> None:
    """A partition is written once a finding; without one it is not written at all."""
    kept = book(OMITTED, served(0, 3))
    assert kept.findings(TOMORROW) is None
    assert kept.findings(DAY) is not None
    assert kept.findings(DAY) is None
    assert len(kept.rows(DAY)) == 3
    assert kept.rows(DAY).empty
    assert kept.parse() == []


def test_a_quiet_edge_of_the_day_is_proven_by_tomorrow_s_candle() -> None:
    """The window's margin reaches over midnight: minute 1,439 lies between candles of one answer."""
    kept = book(OMITTED, served(1_430, 1_450, without={1_438, 1_439, 1_440}))
    assert minutes(told(kept).of(BTC).settled) == set(range(1_430, 1_440))
    assert minutes(told(kept, TOMORROW).of(BTC).settled) == set(range(1_440, 1_450))


def test_rows_nobody_asked_for_are_left_out_where_that_is_usual() -> None:
    """Kraken always sends 720: only the window's are kept; elsewhere the others are stored too."""
    rows = [candle(minute) for minute in range(20)]
    asked = answer(rows, window=span(5, 8), now=at(30))
    assert opens(book(Habits(extra_rows=True), asked).rows(DAY)) == [5, 6, 7]
    assert sorted(opens(book(Habits(), asked).rows(DAY))) == list(range(20))


def test_two_answers_of_a_series_in_one_millisecond_stay_two() -> None:
    """Rows of one answer are told apart from another's by when it came; the exchange's clock, by
    which candles are final, is not moved by that."""
    kept = DayBook(FILLED, {}, run_id="run-1")
    for start in (0, 5):
        kept.answer(served(start, start + 5, now=at(20), offset=7))
    judged = [each for each, _ in kept.parse()]
    assert judged[1].fetched_at == judged[0].fetched_at + 1
    assert [each.exchange_now for each in judged] == [at(20), at(20)]


def test_the_forming_candle_is_stored_and_not_settled() -> None:
    """It is asked for again: its row may change."""
    kept = book(FILLED, served(0, 6, now=at(5.5)))
    frame = kept.rows(DAY)
    assert dict(zip(opens(frame), frame["final"], strict=True)) == {
        0: True, 1: True, 2: True, 3: True, 4: True, 5: False
    }  # fmt: skip
    known = told(kept).of(BTC)
    assert minutes(known.settled) == set(range(5))
    assert known.holes == ()


@pytest.mark.parametrize("offset", [-70_000, 0, 70_000])
def test_a_wrong_clock_of_ours_settles_nothing_too_early(offset: int) -> None:
    """Finality is the exchange's clock's; ``at`` is ours."""
    kept = book(FILLED, served(0, 6, now=at(5.5), offset=offset))
    known = told(kept).of(BTC)
    assert minutes(known.settled) == set(range(5))
    assert known.answered_at == at(5.5) - offset


def test_timeframes_do_not_answer_for_each_other() -> None:
    """An hour's candle says nothing of its minutes."""
    hour = answer([[T0, 10, 12, 9, 11, 1]], window=span(0, 60), timeframe="1h")
    coverage = told(book(FILLED, hour, served(0, 3)))
    assert coverage.of(Series("BTC/USDT", "1h")).settled == (span(0, 60),)
    assert coverage.of(BTC).settled == (span(0, 3),)


# --- Reach ----------------------------------------------------------------------------------------


def test_beyond_its_reach_an_exchange_says_nothing() -> None:
    """Kraken serves the newest 720 whatever is asked: the older part of a window that waited for
    its turn is not silent, it was not served."""
    late = answer(
        [candle(minute) for minute in range(90, 101)], window=span(80, 101), now=at(100.5)
    )
    known = told(book(Habits(quiet="filled", history=15), late)).of(BTC)
    assert holes(known) == [(86, 90, "silent")]
    assert minutes(known.settled) == set(range(90, 100))


def test_a_window_wholly_beyond_reach_settles_nothing() -> None:
    """And leaves no hole, which would be asked for in vain for ever."""
    late = answer([candle(minute) for minute in range(90, 101)], window=span(0, 20), now=at(100.5))
    kept = book(Habits(quiet="omitted", history=15, extra_rows=True), late)
    assert kept.findings(DAY) is None


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "permanent"),
    [(ExchangeUnavailable("HTTP 503"), False), (RequestRefused("bad symbol"), True)],
)
def test_a_failure_over_midnight_is_known_to_both_days(error: Any, permanent: bool) -> None:
    """With its error, and whether asking again helps; nothing is settled by it."""
    kept = book()
    kept.failure(FailedRequest(BTC, span(1_430, 1_450), error, at=at(1_450)))
    for day, expected in ((DAY, (1_430, 1_440)), (TOMORROW, (1_440, 1_450))):
        known = told(kept, day).of(BTC)
        (hole,) = known.holes
        assert holes(known) == [(*expected, "failed")]
        assert (hole.permanent, hole.at, hole.note) == (permanent, at(1_450), str(error))
        assert known.settled == ()
        assert known.answered_at is None


def test_findings_come_in_the_order_they_were_made() -> None:
    """A window failed and was then answered in one run: the answer stands."""
    kept = book()
    kept.failure(FailedRequest(BTC, span(0, 5), ExchangeUnavailable("503"), at=at(10)))
    kept.answer(served(0, 5))
    kept.parse()
    assert told(kept).of(BTC).holes == ()


# --- Trades and trading lives ---------------------------------------------------------------------


def test_candles_built_from_trades_settle_what_they_added() -> None:
    """All trades of two days' edges were read: the quiet minutes among them had none."""
    kept = book(Habits(quiet="filled", history=720, trades=True))
    rows = observations(
        {"open_time": at(1_438), "source": "trades"}, {"open_time": at(1_441), "source": "trades"}
    )
    batch = TradeCandles(
        symbol="BTC/USDT",
        covered={"1m": span(1_400, 1_445)},
        added={"1m": span(1_435, 1_445)},
        observations=rows,
        at=at(2 * MIDNIGHT),
        trades=2,
        requests=1,
    )
    assert kept.trades(batch) == [DAY, TOMORROW]
    for day, expected, row in ((DAY, (1_435, 1_440), 1_438), (TOMORROW, (1_440, 1_445), 1_441)):
        assert opens(kept.rows(day)) == [row]
        known = told(kept, day).of(BTC)
        assert known.settled == known.by_trades == (span(*expected),)


def test_a_trading_life_is_kept_with_the_holes_it_explains() -> None:
    """Also one that was looked up after the answer; of a series without holes it says nothing."""
    lives: dict[str, TradingLife] = {}
    kept = DayBook(FILLED, lives, run_id="run-1")
    kept.answer(served(0, 9, without=range(5)))
    kept.answer(served(0, 9, symbol="ETH/USDT"))
    kept.parse()
    lives["BTC/USDT"] = lives["ETH/USDT"] = TradingLife(first=T0, evidence="its first daily candle")
    coverage = told(kept)
    assert coverage.of(BTC).life == TradingLife(first=at(5), evidence="its first daily candle")
    assert coverage.of(ETH).life is None


def test_a_trading_life_is_told_in_whole_candles() -> None:
    """Listed and delisted at any minute: a gap of hours cannot end within one."""
    known = TradingLife(first=at(67), last=at(245), exact=True)
    kept = DayBook(FILLED, {"BTC/USDT": known}, run_id="run-1")
    for timeframe in ("1m", "1h"):
        kept.answer(answer([], window=span(0, MIDNIGHT), timeframe=timeframe, now=at(3 * MIDNIGHT)))
    kept.parse()
    lives = {series.timeframe: each.life for series, each in told(kept).by_series.items()}
    assert lives["1m"] == known
    assert lives["1h"] == TradingLife(first=at(60), last=at(300), exact=True)


def test_nothing_has_ended_before_its_day_is_over() -> None:
    """Trading that was halted may go on: what would be asked for no more would be lost."""
    lives = {"BTC/USDT": TradingLife(last=at(-5 * MIDNIGHT))}
    for now, last in ((MIDNIGHT - 1, None), (MIDNIGHT, at(-5 * MIDNIGHT))):
        kept = DayBook(FILLED, lives, run_id="run-1")
        kept.answer(answer([], window=span(0, 9), now=at(now)))
        kept.parse()
        life = told(kept).of(BTC).life
        assert life is not None
        assert life.last == last


# --- What answers prove together ------------------------------------------------------------------


def test_where_two_answers_meet_silence_is_proven() -> None:
    """Minutes 8 to 11 are quiet; the first window ends and the second begins among them."""
    kept = book(OMITTED, served(0, 10, without={8, 9}), served(10, 20, without={10, 11}))
    known = told(kept).of(BTC)
    assert known.settled == (span(0, 20),)
    assert known.holes == ()


@pytest.mark.parametrize("between", ["failed", "rejected", "empty", "stray", "unasked"])
def test_what_lies_between_must_be_good(between: str) -> None:
    """Candles on both sides prove nothing across a failure, a refused row, an answer without any
    candle, one with a row that belongs nowhere, or a part nobody asked for."""
    answers = [served(0, 10, without={8, 9}), served(15, 20, without={15})]
    match between:
        case "rejected":
            answers.append(
                answer([candle(m, close=-1.0) for m in range(10, 15)], window=span(10, 15))
            )
        case "empty":
            answers.append(answer([], window=span(10, 15)))
        case "stray":
            answers.append(answer([candle(12), ["?"]], window=span(10, 15)))
    kept = book(OMITTED, *answers)
    if between == "failed":
        kept.failure(FailedRequest(BTC, span(10, 15), ExchangeUnavailable("503"), at=at(40)))
    settled = minutes(told(kept).of(BTC).settled)
    came = {*range(8), *range(16, 20)} | ({12} if between == "stray" else set())
    assert settled == came


def test_a_part_of_an_earlier_run_counts() -> None:
    """What proves it together may have come on different days of ours."""
    before = told(book(OMITTED, served(0, 10, without={8, 9})))
    known = told(book(OMITTED, served(10, 20, without={10})), before=before).of(BTC)
    assert known.settled == (span(0, 20),)


@pytest.mark.parametrize("quiet", ["filled", "unknown"])
def test_others_prove_nothing_by_candles_around(quiet: Any) -> None:
    """One symbol's missing minutes are lost, or of unknown cause, however often asked for."""
    coverage = Coverage()
    for _ in range(5):
        kept = book(
            Habits(quiet=quiet), served(0, 20, without={7, 8}), served(0, 20, symbol="ETH/USDT")
        )
        coverage = told(kept, before=coverage)
    assert holes(coverage.of(BTC)) == [(7, 9, "silent")]


def test_an_outage_of_all_symbols_is_settled_at_once() -> None:
    """Binance was down from 7 to 9: no flat candles, of nobody."""
    down = {7, 8}
    kept = book(FILLED, served(0, 20, without=down), served(0, 20, without=down, symbol="ETH/USDT"))
    coverage = told(kept)
    for series in (BTC, ETH):
        assert coverage.of(series).outages == (span(7, 9),)
        assert coverage.of(series).holes == ()


def test_an_outage_is_one_timeframe_s() -> None:
    """The hours of both are there; their minutes are missing."""
    down = {7, 8}
    hour = answer([[T0, 10, 12, 9, 11, 1]], window=span(0, 60), timeframe="1h")
    coverage = told(book(FILLED, hour, served(0, 20, without=down)))
    assert coverage.of(BTC).outages == ()


def test_nothing_is_proven_of_an_exchange_nobody_measured() -> None:
    """``quiet: unknown``: what is silent stays a hole."""
    silent = told(
        book(Habits(), served(0, 9, without={4}), served(0, 9, without={4}, symbol="ETH/USDT"))
    )
    assert proven(silent, Habits(), Interval(T0, T0 + DAY_MS)) == silent
    assert unsettled(silent.of(BTC), span(0, 9))
    assert not unsettled(silent.of(BTC), span(5, 9))


def test_empty_answers_of_all_symbols_are_no_outage_at_once() -> None:
    """A backfill's second page came back as ``[]`` for both symbols, once: an HTTP 200 of an
    exchange in trouble. An empty answer counts after three."""
    answers = []
    for symbol in ("BTC/USDT", "ETH/USDT"):
        answers += [served(0, 10, symbol=symbol), served(20, 30, symbol=symbol)]
        answers.append(answer([], window=span(10, 20), symbol=symbol))
    coverage = told(book(FILLED, *answers))
    assert coverage.of(BTC).outages == ()
    assert holes(coverage.of(BTC)) == [(10, 20, "empty")]
