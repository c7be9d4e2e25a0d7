"""The verdict on a partition, against a verdict in plain Python."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.candles import CANDLE_DTYPES, OBSERVATION_DTYPES
from crypto_pipeline.core.observations import merge
from crypto_pipeline.core.rules import CANDLE_SCHEMA, RULE_DEMANDS
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.core.validation import validate
from crypto_pipeline_tests.core.builders import DAY, T0, observations, records

Record = dict[str, Any]

#: How to break each rule, from a row that keeps them all.
BROKEN: dict[str, Record] = {
    "open_time_invalid": {"open_time": None},
    "in_future": {"open_time": T0 + 3 * DAY_MS},
    "off_grid": {"open_time": T0 + 1},
    "outside_partition": {"open_time": T0 + DAY_MS},
    "price_not_finite": {"close": math.nan},
    "price_not_positive": {"open": 0.0},
    "volume_not_finite": {"volume": math.inf},
    "volume_negative": {"volume": -1.0},
    "high_below_low": {"high": 8.0},
    "open_outside_range": {"open": 13.0},
    "close_outside_range": {"close": 8.0},
}

good = st.fixed_dictionaries(
    {
        "symbol": st.sampled_from(["ETH/USDT", "BTC/USDT"]),
        "timeframe": st.sampled_from(["1m", "1h"]),
        "open_time": st.sampled_from([T0, T0 + 3_600_000]),
        "close": st.sampled_from([10.0, 11.0]),
        "final": st.booleans(),
        "fetched_at": st.integers(0, 2).map(lambda n: T0 + DAY_MS + n * MINUTE_MS),
        "run_id": st.sampled_from(["run-2", "run-1"]),
    }
)
bad = st.tuples(good, st.sampled_from(list(BROKEN))).map(
    lambda parts: parts[0] | BROKEN[parts[1]] | {"source": parts[1]}
)
rows = st.lists(good | good | bad, max_size=14)


@given(rows)
def test_validate_against_plain_python(given_rows: list[Record]) -> None:
    """Of each candle the newest answer's first conforming row; refused are the rest that say so.

    ``source`` says which rule a row breaks.
    """
    seen = records(observations(*given_rows))
    answers: dict[tuple[Any, ...], dict[tuple[Any, ...], list[int]]] = {}
    for index, row in enumerate(seen):
        if row["source"] == "ohlcv":
            key = (row["symbol"], row["timeframe"], row["open_time"])
            by_answer = answers.setdefault(key, {})
            by_answer.setdefault((row["fetched_at"], row["run_id"]), []).append(index)
    stands = [answers[key][max(answers[key])][0] for key in sorted(answers)]
    repeats = {i for by in answers.values() for one in by.values() for i in one[1:]}
    refused = {i: row["source"] for i, row in enumerate(seen) if row["source"] != "ohlcv"}
    refused |= dict.fromkeys(repeats, "duplicate")

    verdict = validate(observations(*given_rows), day=DAY)

    facts = list(CANDLE_DTYPES)
    assert records(verdict.candles) == [{n: seen[i][n] for n in facts} for i in stands]
    rejected = verdict.rejected
    assert rejected["rule"].tolist() == [refused[i] for i in sorted(refused)]
    kept_facts = [name for name in facts if name != "received"]
    assert repr(records(rejected[kept_facts])) == repr(
        [{n: seen[i][n] for n in kept_facts} for i in sorted(refused)]
    )
    superseded = sum(len(by) - 1 for by in answers.values())
    assert len(verdict.candles) + len(rejected) + superseded == len(seen)
    assert sum(verdict.counts.values()) == len(rejected)


@given(rows)
@settings(max_examples=30)
def test_the_verdict_does_not_depend_on_how_names_are_coded(given_rows: list[Record]) -> None:
    """Validating again in a year, from a file with other dictionaries: the same, to the row."""
    frame = observations(*given_rows)
    coded = frame.copy()
    for name in ("symbol", "timeframe", "run_id"):
        names = [*frame[name].cat.categories[::-1], "1d"]
        coded[name] = frame[name].cat.set_categories(pd.Index(names, dtype="str"))
    one, two = validate(frame, day=DAY), validate(coded, day=DAY)
    assert records(one.candles) == records(two.candles)
    assert repr(records(one.rejected)) == repr(records(two.rejected))


@given(st.lists(good | bad, max_size=8), st.lists(good | bad, max_size=8))
@settings(max_examples=30)
def test_two_runs_in_any_order_give_the_same_candles(one: list[Record], two: list[Record]) -> None:
    """Whichever run writes first, the prices that stand are those of the newest answer."""
    one = [row | {"run_id": "run-1"} for row in one]
    two = [row | {"run_id": "run-2"} for row in two]
    frames = [observations(*one), observations(*two)]
    verdicts = [
        validate(merge(merge(observations(), first), second), day=DAY)
        for first, second in (frames, frames[::-1])
    ]
    key_and_prices = ["symbol", "timeframe", "open_time", "open", "high", "low", "close", "volume"]
    left, right = (records(verdict.candles[key_and_prices]) for verdict in verdicts)
    assert left == right


@given(rows.filter(bool))
@settings(max_examples=30)
def test_candles_keep_the_schema(given_rows: list[Record]) -> None:
    """What leaves the gate is what the gate's own schema takes."""
    frame = observations(*given_rows)
    verdict = validate(frame, day=DAY)
    CANDLE_SCHEMA.validate(verdict.candles, lazy=True)
    text = dict.fromkeys(["rule", "message", "received"], "str")
    expected = frame.dtypes.astype(str).to_dict() | text
    assert verdict.rejected.dtypes.astype(str).to_dict() == expected


def test_an_empty_partition() -> None:
    """No observations: no candles, no rejections, every column."""
    verdict = validate(observations(), day=DAY)
    assert verdict.counts == {}
    assert list(verdict.candles.columns) == list(CANDLE_DTYPES)
    assert list(verdict.rejected.columns) == [*OBSERVATION_DTYPES, "rule", "message"]
    CANDLE_SCHEMA.validate(verdict.candles)


def test_a_bad_reread_does_not_take_a_good_candle() -> None:
    """The newest answer is refused by name, and the one before stands."""
    newer = {"fetched_at": T0 + 3 * DAY_MS, "high": 1.0, "run_id": "run-2"}
    verdict = validate(observations({}, newer), day=DAY)
    assert records(verdict.candles)[0]["high"] == 12.0
    assert verdict.counts == {"high_below_low": 1}


def test_a_good_reread_heals_a_bad_candle() -> None:
    """The refused reading stays on record, the candle is there."""
    newer = {"fetched_at": T0 + 3 * DAY_MS, "run_id": "run-2"}
    verdict = validate(observations({"high": 1.0}, newer), day=DAY)
    assert len(verdict.candles) == len(verdict.rejected) == 1


def test_a_bad_first_row_is_no_original() -> None:
    """Of two rows in one answer, the first broken: the second is the candle, not a duplicate."""
    verdict = validate(observations({"close": math.nan}, {"close": 10.0}), day=DAY)
    assert records(verdict.candles)[0]["close"] == 10.0
    assert verdict.counts == {"price_not_finite": 1}


def test_rejections_say_what_came_to_the_millisecond() -> None:
    """The row as received where that was kept, its six numbers where not, and both clocks."""
    odd = {"open_time": T0 + 1_001, "fetched_at": T0 + 60_001, "clock_offset_ms": -1}
    text = {"open_time": None, "received": '["x"]'}
    verdict = validate(observations(odd, text, {"open_time": None}), day=DAY)
    first, second, third = records(verdict.rejected)
    assert json.loads(first["received"]) == [T0 + 1_001, 10.0, 12.0, 9.0, 11.0, 1.5]
    assert "open_time 2023-03-01T00:00:01.001Z" in first["message"]
    assert "exchange clock 2023-03-01T00:01:00.000Z" in first["message"]
    assert second["received"] == '["x"]'
    assert '["x"] (open_time none' in second["message"]
    assert json.loads(third["received"])[0] is None


def test_every_rejection_says_what_its_rule_demands() -> None:
    """One row for each rule, each refused by its own."""
    verdict = validate(observations({}, {}, *BROKEN.values()), day=DAY)
    assert verdict.rejected["rule"].tolist() == ["duplicate", *BROKEN]
    assert verdict.counts == dict.fromkeys(RULE_DEMANDS, 1)
    for rule, message in zip(verdict.rejected["rule"], verdict.rejected["message"], strict=True):
        assert message.startswith(RULE_DEMANDS[rule])
    assert len(verdict.candles) == 1


def test_messages_stay_readable() -> None:
    """A row of two thousand characters does not bury the clocks."""
    (row,) = records(
        validate(observations({"open_time": None, "received": "x" * 2_000}), day=DAY).rejected
    )
    assert len(row["received"]) == 2_000
    assert len(row["message"]) < 1_000
    assert "exchange clock" in row["message"]
