"""Merging answers into the raw zone, against a model of lists and against what must never happen."""

from __future__ import annotations

import math
from itertools import chain, groupby, permutations
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, empty_observations
from crypto_pipeline.core.observations import in_order, merge
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline_tests.core.builders import T0, content, observations, records

Record = dict[str, Any]


def candle_of(record: Record) -> tuple[Any, ...]:
    time = record["open_time"]
    return record["symbol"], record["timeframe"], -math.inf if time is None else time


def statement_of(record: Record) -> tuple[Any, ...]:
    return *candle_of(record), record["fetched_at"], record["run_id"]


def is_final(record: Record) -> bool:
    """Whether it may never be replaced: a row without a time is no forming candle."""
    return record["final"] or record["open_time"] is None


def model(old: list[Record], new: list[Record]) -> list[Record]:
    """merge() with lists: statement by statement, candle by candle."""

    def said(statement: list[Record]) -> list[Any]:
        return [(is_final(r), content(r)) for r in statement]

    kept: list[Record] = []
    tagged = sorted(
        [(r, False) for r in old] + [(r, True) for r in new], key=lambda t: statement_of(t[0])
    )
    for _, of_candle in groupby(tagged, key=lambda t: candle_of(t[0])):
        statements = []
        for _, group in groupby(of_candle, key=lambda t: statement_of(t[0])):
            rows = list(group)
            there = said([r for r, added in rows if not added])
            unsaid = []
            for r, added in rows:
                if added and (what := said([r])[0]) in there:
                    there.remove(what)
                else:
                    unsaid.append((r, added))
            statements.append(unsaid)
        if any(is_final(r) for rows in statements for r, _ in rows):
            statements = [[(r, a) for r, a in rows if is_final(r)] for rows in statements]
            statements = [rows for rows in statements if rows]
        result, before = [], None
        for rows in statements:
            what = said([r for r, _ in rows])
            result.append([r for r, added in rows if not (added and what == before)])
            before = what
        result = [rows for rows in result if rows]
        kept += chain.from_iterable(result if is_final(result[-1][0]) else result[-1:])
    return kept


def strategy(**changes: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Record]]:
    """Rows of few candles, few answers and few values, so that everything meets everything."""
    rows = st.fixed_dictionaries(
        {
            "symbol": st.sampled_from(["BTC/USDT", "ETH/USDT"]),
            "timeframe": st.sampled_from(["1m", "1h"]),
            "open_time": st.sampled_from([None, T0, T0 + MINUTE_MS]),
            "close": st.sampled_from([11.0, 12.0, math.nan]),
            "received": st.sampled_from([None, None, "[1]"]),
            "final": st.booleans(),
            "fetched_at": st.integers(1, 3).map(lambda n: T0 + n * MINUTE_MS),
            "run_id": st.sampled_from(["run-1", "run-2"]),
        }
        | changes
    )
    return st.lists(rows, max_size=10)


anything = strategy()
few = {"symbol": st.just("BTC/USDT"), "timeframe": st.just("1m")}
one_candle = strategy(**few, open_time=st.sampled_from([None, T0, T0, T0]))
simple = strategy(
    **few,
    open_time=st.just(T0),
    close=st.sampled_from([11.0, math.nan]),
    received=st.none(),
    run_id=st.just("run-1"),
    final=st.sampled_from([True, True, False]),
)
either = one_candle | simple | anything


def merged(*answers: list[Record]) -> pd.DataFrame:
    frame = empty_observations()
    for rows in answers:
        frame = merge(frame, observations(*rows))
    return frame


@given(either, either)
def test_merge_of_anything(old: list[Record], new: list[Record]) -> None:
    """As the model says; twice is once; nothing final is lost; one answer's forming rows at most.

    A run that died after writing is run again: a second copy would be rejected as duplicate.
    """
    before, added = merged(old), observations(*new)
    after = merge(before, added)
    expected = model(records(before), records(added))
    assert repr(records(after)) == repr(expected)
    assert repr(records(merge(after, added))) == repr(expected)
    assert_nothing_final_is_lost(records(before), records(added), expected)
    assert_forming_rows_are_the_newest_answer_s(records(before), records(added), expected)


def assert_nothing_final_is_lost(old: list[Record], new: list[Record], after: list[Record]) -> None:
    """Every candle and every value a final row ever had; each old final row as it is."""
    assert {candle_of(r) for r in after} == {candle_of(r) for r in old + new}
    for_good = {(candle_of(r), content(r)) for r in old + new if is_final(r)}
    assert for_good <= {(candle_of(r), content(r)) for r in after}
    rest = list(map(repr, after))
    for record in filter(is_final, old):
        rest.remove(repr(record))


def assert_forming_rows_are_the_newest_answer_s(
    old: list[Record], new: list[Record], after: list[Record]
) -> None:
    """Beside a final row none stands."""
    for candle in {candle_of(r) for r in after if not is_final(r)}:
        forming = [r for r in after if candle_of(r) == candle]
        heard = [r for r in old + new if candle_of(r) == candle]
        assert not any(map(is_final, heard))
        assert len({statement_of(r) for r in forming}) == 1
        newest = max(map(statement_of, heard))
        last_words = {content(r) for r in heard if statement_of(r) == newest}
        assert {content(r) for r in forming} == last_words


@pytest.mark.parametrize("old", [[], [{}], [{"open_time": None}]])
@pytest.mark.parametrize("new", [[], [{}], [{"symbol": "ETH/USDT", "received": "[1]"}]])
def test_merge_keeps_every_dtype(old: list[Record], new: list[Record]) -> None:
    """Categories stay categories of text, whatever is empty: the first tick meets an empty file."""
    frame = merged(old, new)
    assert frame.dtypes.astype(str).equals(empty_observations().dtypes.astype(str))
    assert list(frame.columns) == list(OBSERVATION_DTYPES)
    assert frame.index.equals(pd.RangeIndex(len(frame)))
    for name in ("symbol", "timeframe", "run_id", "source"):
        assert frame[name].cat.categories.dtype == "str"


@given(either)
@settings(max_examples=30)
def test_in_order(rows: list[Record]) -> None:
    """By candle and answer; the rows of one answer stay in the order they came."""
    frame = observations(*rows)
    assert repr(records(in_order(frame))) == repr(sorted(records(frame), key=statement_of))


def test_merge_leaves_its_arguments_alone() -> None:
    """The caller still holds them when the file cannot be written."""
    old, new = observations({"final": False}), observations({"close": 10.0, "run_id": "run-2"})
    copies = old.copy(), new.copy()
    merge(old, new)
    pd.testing.assert_frame_equal(old, copies[0])
    pd.testing.assert_frame_equal(new, copies[1])


def test_three_ticks() -> None:
    """A candle forms, closes, and is read again: two rows come, one stays; a correction is added."""

    def tick(n: int, close: float, *, final: bool) -> list[Record]:
        return [{"fetched_at": T0 + n, "run_id": f"run-{n}", "close": close, "final": final}]

    frame = merged(tick(1, 10, final=False), tick(2, 11, final=True), tick(3, 11, final=True))
    assert [(r["run_id"], r["close"]) for r in records(frame)] == [("run-2", 11.0)]
    frame = merge(frame, observations(*tick(4, 12, final=True)))
    assert [r["close"] for r in records(frame)] == [11.0, 12.0]


def test_an_answer_is_not_torn_apart() -> None:
    """Answer 2 repeats the first row of answer 1 and differs in the duplicate.

    Keeping only the difference made answer 2's duplicate its first row, and so the candle.
    """
    one = [{"close": 11.0}, {"close": 10.0}]
    two = [{"close": 11.0, "run_id": "run-2", "fetched_at": T0 * 2}]
    two += [two[0] | {"close": 12.0}]
    assert [r["close"] for r in records(merged(one, two))] == [11.0, 10.0, 11.0, 12.0]


def test_a_repeated_null_is_a_repeat() -> None:
    """NaN is not equal to itself: an exchange's nulls would be added anew every minute."""
    null = {"close": math.nan, "received": "[null]"}
    assert len(merged([null], [null | {"fetched_at": T0 * 2, "run_id": "run-2"}])) == 1


def test_what_is_there_stays_although_a_late_answer_says_it_first() -> None:
    """The old row of 3 repeats the late one of 2 now; it may be what a candle was made of."""
    old = [{"close": 10.0, "fetched_at": T0 + 1}, {"close": 11.0, "fetched_at": T0 + 3}]
    late = [{"close": 11.0, "fetched_at": T0 + 2, "run_id": "run-2"}]
    assert [r["close"] for r in records(merged(old, late))] == [10.0, 11.0, 11.0]


def test_a_late_answer_does_not_replace_a_newer_one() -> None:
    """Two runs meet: the one that asked first writes last."""
    newer = {"final": False, "fetched_at": T0 + 2, "close": 12.0}
    older = {"final": False, "fetched_at": T0 + 1, "close": 10.0, "run_id": "run-2"}
    assert [r["close"] for r in records(merged([newer], [older]))] == [12.0]


def test_several_answers_merged_again_stay_what_they_were() -> None:
    """A value, its correction, and the run done over: the first value came back as a duplicate."""
    both = [{"close": 10.0, "fetched_at": T0 + 1}, {"close": 11.0, "fetched_at": T0 + 2}]
    assert [r["close"] for r in records(merged(both, both))] == [10.0, 11.0]


def test_rows_without_a_time_do_not_replace_each_other() -> None:
    """They are evidence of bad answers, not a candle that is still forming."""
    first = {"open_time": None, "final": False, "received": "[null]"}
    second = first | {"received": '["x"]', "run_id": "run-2", "fetched_at": T0 * 2}
    assert len(merged([first], [second])) == 2


@pytest.mark.parametrize("categories", [*permutations(["ADA/USDT", "BTC/USDT", "ETH/USDT"])])
def test_order_is_by_name_not_by_category(categories: tuple[str, ...]) -> None:
    """Categories come in any order from a file; rows are ordered by what they are called."""
    frame = observations(*({"symbol": name} for name in ("ETH/USDT", "ADA/USDT", "BTC/USDT")))
    frame["symbol"] = frame["symbol"].cat.set_categories(categories)
    assert in_order(frame)["symbol"].tolist() == sorted(categories)
