"""The rules: one question, three askers, and an oracle in plain Python that shares none of it."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pandas as pd
import pandera.errors
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from crypto_pipeline.core.candles import as_candles
from crypto_pipeline.core.rules import (
    CANDLE_SCHEMA,
    RULE_DEMANDS,
    RULES,
    OHLCVData,
    columns_of,
    first_broken,
    keeps_schema,
)
from crypto_pipeline.core.timeframes import DAY_MS, utc
from crypto_pipeline_tests.core.builders import T0, observations, records

NOON = T0 + DAY_MS // 2
LENGTHS = {"1s": 1_000, "1m": 60_000, "4h": 14_400_000, "1d": 86_400_000}


def oracle(row: dict[str, Any], *, partition: int | None) -> str | None:  # noqa: C901, PLR0911
    """The first rule a row breaks, by the words of the rules."""
    time = row["open_time"]
    o, h, low, c = prices = [row[name] for name in ("open", "high", "low", "close")]
    if time is None:
        return "open_time_invalid"
    if time > row["fetched_at"] + row["clock_offset_ms"] + 5_000:
        return "in_future"
    if math.fmod(time, LENGTHS[row["timeframe"]]) != 0:
        return "off_grid"
    if partition is not None and time // 86_400_000 != partition // 86_400_000:
        return "outside_partition"
    if any(math.isnan(p) or math.isinf(p) for p in prices):
        return "price_not_finite"
    if not all(p > 0 for p in prices):
        return "price_not_positive"
    if math.isnan(row["volume"]) or math.isinf(row["volume"]):
        return "volume_not_finite"
    if not row["volume"] >= 0:
        return "volume_negative"
    if not h >= low:
        return "high_below_low"
    if not low <= o <= h:
        return "open_outside_range"
    if not low <= c <= h:
        return "close_outside_range"
    return None


edges = [0.0, -0.0, 5e-324, -5e-324, math.nan, math.inf, -math.inf, 1.7976931348623157e308, -1.0]
number = st.sampled_from([9.0, 10.0, 11.0, 12.0]) | st.sampled_from(edges) | st.floats()
times = (
    st.integers(0, 5).map(lambda n: NOON + n * 14_400_000)
    | st.sampled_from([None, T0, T0 - 60_000, T0 + DAY_MS, T0 + DAY_MS - 1, NOON + 1, NOON - 1])
    | st.integers(0, 10**14)
)
conforming = st.fixed_dictionaries(
    {
        "timeframe": st.sampled_from(["1s", "1m", "4h"]),
        "open_time": st.integers(0, 5).map(lambda n: T0 + n * 14_400_000),
        "open": st.floats(10, 12),
        "high": st.floats(12, 1e300),
        "low": st.floats(5e-324, 10),
        "close": st.floats(10, 12),
        "volume": st.floats(0, 1e300),
    }
)
spoiled = st.tuples(
    conforming,
    st.dictionaries(st.sampled_from(["open", "high", "low", "close", "volume"]), number),
    st.fixed_dictionaries(
        {},
        optional={
            "open_time": times,
            "timeframe": st.sampled_from([*LENGTHS]),
            "fetched_at": st.sampled_from([NOON, NOON - 5_000, NOON - 5_001, T0 + 2 * DAY_MS]),
            "clock_offset_ms": st.sampled_from([0, 10_000, -10_000, 5_000, -1]),
        },
    ),
).map(lambda parts: parts[0] | parts[1] | parts[2])
rows = st.lists(conforming | spoiled, min_size=1, max_size=12)


@given(rows)
def test_frames_against_the_oracle(given_rows: list[dict[str, Any]]) -> None:
    """Any row, NaN, infinities, negative zero, subnormals and absent times included."""
    frame = observations(*given_rows)
    for partition in (None, T0):
        broken = first_broken(columns_of(frame, partition_start=partition))
        names = [None if index < 0 else RULES[index].name for index in broken]
        assert names == [oracle(row, partition=partition) for row in records(frame)]


@given(conforming | spoiled, st.sampled_from([None, T0]))
def test_the_row_model_against_the_oracle(row: dict[str, Any], partition: int | None) -> None:
    """OHLCVData takes what conforms, and names the same rule for what does not."""
    (full,) = records(observations(row))
    expected = oracle(full, partition=partition)
    fields = {name: full[name] for name in ("symbol", "timeframe", "open", "high", "low", "close")}

    def build() -> OHLCVData:
        return OHLCVData(
            **fields,
            volume=full["volume"],
            open_time=None if full["open_time"] is None else utc(full["open_time"]),
            observed_at=utc(full["fetched_at"] + full["clock_offset_ms"]),
            partition_start=None if partition is None else utc(partition),
        )

    if expected is None:
        assert build().close == full["close"]
        return
    with pytest.raises(ValidationError) as caught:
        build()
    (error,) = caught.value.errors()
    if expected == "open_time_invalid":
        assert error["loc"] == ("open_time",)
    else:
        assert error["ctx"]["rule"] == expected
        assert error["msg"] == f"{expected}: {RULE_DEMANDS[expected]}"


@given(rows)
@settings(max_examples=25)
def test_the_frame_schema_against_the_oracle(given_rows: list[dict[str, Any]]) -> None:
    """CANDLE_SCHEMA refuses exactly the rows that break a rule, and repeated candles."""
    frame = as_candles(observations(*given_rows))
    judged = records(frame)
    expected = {
        index: rule
        for index, row in enumerate(judged)
        if (rule := oracle(row, partition=None)) is not None
    }
    keys = [(row["symbol"], row["timeframe"], row["open_time"]) for row in judged]
    repeated = {index for index, key in enumerate(keys) if key in keys[:index]}
    refusals: dict[int, set[str]] = {}
    try:
        CANDLE_SCHEMA.validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        for case in errors.failure_cases.itertuples():
            refusals.setdefault(case.index, set()).add(case.check)

    assert refusals.keys() == expected.keys() | repeated
    assert keeps_schema(frame) is (not refusals)
    for index, rule in expected.items():
        first = next(r.name for r in RULES if r.demands in refusals[index])
        assert first == rule


@pytest.mark.parametrize(
    "spoil",
    [
        lambda frame: frame.drop(columns="volume"),
        lambda frame: frame.assign(extra=1),
        lambda frame: frame[frame.columns[::-1]],
        lambda frame: frame.astype({"open": "float32"}),
        lambda frame: frame.assign(open_time=frame["open_time"].dt.tz_localize(None)),
        lambda frame: frame.assign(fetched_at=pd.Series([pd.NaT], dtype=frame["fetched_at"].dtype)),
        lambda frame: frame.assign(run_id=pd.Series([None], dtype=frame["run_id"].dtype)),
        lambda frame: frame.assign(source=frame["source"].astype("str")),
        lambda frame: frame.assign(timeframe=pd.Categorical(["soon"])),
        lambda frame: pd.concat([frame, frame[["open"]]], axis="columns"),
    ],
)
def test_the_frame_schema_wants_its_columns(spoil: Any) -> None:
    """Exactly the columns, in order and dtype, none of them null."""
    with pytest.raises((pandera.errors.SchemaError, pandera.errors.SchemaErrors)):
        CANDLE_SCHEMA.validate(spoil(as_candles(observations({}))), lazy=True)
    assert not keeps_schema(spoil(as_candles(observations({}))))


def test_the_frame_schema_takes_an_empty_frame() -> None:
    """A partition without candles is a valid one."""
    assert CANDLE_SCHEMA.validate(as_candles(observations())).empty
    assert keeps_schema(as_candles(observations()))


@given(st.integers(-20_000, 20_000))
@example(5_000)
@example(5_001)
def test_the_future_is_by_the_exchange_s_clock(ahead: int) -> None:
    """A forming candle of an exchange 4 s ahead of us is not from the future; five seconds on is."""
    frame = observations(
        {"open_time": NOON, "fetched_at": NOON - ahead - 4_000, "clock_offset_ms": 4_000}
    )
    assert (first_broken(columns_of(frame))[0] >= 0) == (ahead > 5_000)


def test_a_row_model_needs_instants() -> None:
    """A naive time is nobody's instant."""
    (row,) = records(observations({}))
    fields = {name: row[name] for name in ("symbol", "timeframe", "open", "high", "low", "close")}
    naive = datetime.fromtimestamp(T0 / 1_000)  # noqa: DTZ006
    with pytest.raises(ValidationError, match="timezone"):
        OHLCVData(**fields, volume=1.0, open_time=naive, observed_at=utc(NOON))


def test_every_rule_says_what_it_demands() -> None:
    """Names are unique: they are what ``rejected_candles`` is filtered by."""
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.name for rule in RULES} | {"duplicate"} == set(RULE_DEMANDS)
