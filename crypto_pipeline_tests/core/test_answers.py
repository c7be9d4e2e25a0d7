"""Answers become observations: no number that was not there, nothing lost of what was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.answers import observations_of, observations_of_all, settled_before
from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, concat
from crypto_pipeline.core.rows import CCXT_LAYOUT, Layout
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline_tests.core.builders import T0, answer, records

SETTLE_MS = 2_000
RECORDED = Path(__file__).parents[2].parent / "shared" / "data" / "answers"
KRAKEN = Layout((0, 1, 2, 3, 4, 6), 1_000)
COINBASE = Layout((0, 3, 2, 1, 4, 5), 1_000)
LAYOUTS = {
    "binance": CCXT_LAYOUT,
    "kraken": KRAKEN,
    "coinbaseexchange": COINBASE,
    "gemini": CCXT_LAYOUT,
}


def observe(rows: list[Any], **facts: Any) -> list[dict[str, Any]]:
    frame = observations_of(answer(rows, **facts), run_id="run-1", settle_ms=SETTLE_MS)
    assert list(frame.columns) == list(OBSERVATION_DTYPES)
    assert frame.dtypes.astype(str).equals(_NO_ROWS.dtypes.astype(str))
    assert len(frame) == len(rows)
    return records(frame)


_NO_ROWS = observations_of(answer([]), run_id="run-1", settle_ms=SETTLE_MS)


def six(record: dict[str, Any]) -> list[Any]:
    return [record["open_time"], *(record[name] for name in VALUES)]


def same(mine: object, theirs: object) -> bool:
    return repr(mine) == repr(theirs)  # NaN is NaN, and -0.0 is not 0.0


# --- What exchanges really answered ---------------------------------------------------------------


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded answers are not here")
@pytest.mark.parametrize(
    "name", ["binance", "coinbaseexchange", "gemini", "kraken", "kraken_1h_since"]
)
def test_recorded_answers_read_as_ccxt_reads_them(name: str) -> None:
    """Strings and numbers, ms and seconds, any column order: candle for candle what ccxt made."""
    recorded = json.loads((RECORDED / f"{name}.json").read_text())
    rows = recorded["response"]
    if name.startswith("kraken"):
        rows = rows["result"][recorded["market_id"]]
    seen = observe(rows, layout=LAYOUTS[recorded["exchange"]])
    since = recorded["since"] or 0
    mine = sorted(six(record) for record in seen if record["open_time"] >= since)
    assert mine[: recorded["limit"]] == recorded["parsed_by_ccxt_4_5_90"]
    assert not any(record["received"] for record in seen)


def test_rows_stay_in_the_order_they_came() -> None:
    """Coinbase: newest first, time low high open close volume, in seconds."""
    seconds = T0 // 1_000
    seen = observe(
        [[seconds + 60, 9, 12, 10, 11, 1.5], [seconds, 8, 11, 9, 10, 2]], layout=COINBASE
    )
    assert [six(record) for record in seen] == [
        [T0 + MINUTE_MS, 10, 12, 9, 11, 1.5],
        [T0, 9, 11, 8, 10, 2],
    ]


def test_several_answers_are_their_rows_one_after_the_other() -> None:
    """The frame built once for all says what the frames of each would."""
    answers = [answer([[T0, 1, 2, 1, 2, 5]]), answer([]), answer([[T0, 1, 2, 1, None, 5], "oops"])]
    frames = [observations_of(one, run_id="r", settle_ms=0) for one in answers]
    together = observations_of_all(answers, run_id="r", settle_ms=0)
    apart = concat(frames, OBSERVATION_DTYPES)
    assert repr(records(together)) == repr(records(apart))
    assert observations_of_all([], run_id="r", settle_ms=0).empty


# --- Numbers --------------------------------------------------------------------------------------

decimal_text = st.from_regex(r"[+-]?([0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})", fullmatch=True)
decimal_text |= st.builds(
    "{}{}{}".format, decimal_text, st.sampled_from("eE"), st.integers(-330, 300)
)
decimal_text |= st.floats(allow_nan=False, allow_infinity=False).map(repr)
decimal_text = decimal_text.filter(lambda text: math.isfinite(float(text)))


@given(st.lists(st.tuples(*[decimal_text] * 5), min_size=1, max_size=20))
@settings(max_examples=40)
def test_decimal_texts_are_read_exactly(cells: list[tuple[str, ...]]) -> None:
    """The column-wise cast gives the double nearest to the text, to the last bit."""
    seen = observe([[T0, *texts] for texts in cells])
    for record, texts in zip(seen, cells, strict=True):
        assert same(six(record), [T0, *map(float, texts)])
        assert record["received"] is None


page = st.sampled_from([int, str]).flatmap(
    lambda time: st.lists(
        st.tuples(
            st.integers(0, 252_000_000_000).map(time),
            decimal_text,
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-100, 100) | st.floats(-100, 100),
            decimal_text,
            st.none() | st.text(),
        ).map(list),
        min_size=1,
        max_size=20,
    )
)


@given(page, st.sampled_from([1, 1_000]))
@settings(max_examples=40)
def test_one_odd_row_changes_nothing_for_the_others(rows: list[list[Any]], unit: int) -> None:
    """A page is read column by column, or row by row if one row is odd: with the same outcome."""
    layout = Layout((0, 1, 2, 3, 4, 5), unit)
    odd = [None, None, None, None, None, None, None]
    plain, careful = observe(rows, layout=layout), observe([*rows, odd], layout=layout)
    assert same(plain, careful[:-1])
    assert [record["received"] for record in plain] == [None] * len(rows)
    assert careful[-1]["received"] == json.dumps(odd)


odd_cells = [
    *(True, False, None, "", " ", " 1", "1 ", "1\n", "1_000", "0x10", "0b1", "1,5", "1.5.2", "--1"),
    *("nan", "NaN", "inf", "-Infinity", "١٢", "１", "٣.٥", "1٫5", "½", "e5", ".", "-", "1e", "1d"),
    *([], [1], {}, {"a": 1}, [[[]]], b"1", 10**400, -(10**5_000), 2**63, 2**64, 2**53 + 1),
    *("1e400", "-1e400", "1e-400", 1e300, math.nan, math.inf, "9" * 400, "9" * 5_000, "\ud800"),
    *("1\x00", "\x00", "NULL", "+5", "007", "-0", -0.0, 5e-324),
]
cell = st.sampled_from(odd_cells) | st.integers() | st.floats() | st.text() | decimal_text
times = st.sampled_from(
    [T0, float(T0), str(T0), T0 + 0.5, f"{T0}.0", -1, 253_402_300_800_000, hex(T0), f" {T0}"]
)


def meaning(value: object) -> float | None:
    """The number a JSON value is or spells, found by another way than the code's."""
    if type(value) is float:
        return value
    if type(value) is str and not set(value) <= set("0123456789.+-eE"):
        return None
    if type(value) in {int, str}:
        try:
            return float(value)  # type: ignore[arg-type]
        except (OverflowError, ValueError):
            return None
    return None


@given(
    st.lists(
        st.tuples(times | cell, cell, cell, cell, cell, cell).map(list)
        | st.lists(cell, max_size=7)
        | st.dictionaries(st.text(), cell)
        | cell,
        max_size=6,
    ),
    st.sampled_from([1, 1_000]),
)
def test_odd_cells_never_raise_and_never_become_numbers(rows: list[Any], unit: int) -> None:
    """What is no number is absent, what is one keeps its value, and the odd row keeps its text."""
    for row, record in zip(
        rows, observe(rows, layout=Layout((0, 1, 2, 3, 4, 5), unit)), strict=True
    ):
        cells = [*row, *[None] * 6][:6] if isinstance(row, list) else [None] * 6
        time, *numbers = map(meaning, cells)
        whole = time is not None and math.isfinite(time) and time.is_integer()
        opened = int(time) * unit if whole else None
        if opened is not None and not 0 <= opened < 253_402_300_800_000:
            opened = None
        values = [math.nan if number is None else number for number in numbers]
        assert same(six(record), [opened, *values])
        plain = opened is not None and all(map(math.isfinite, values))
        assert (record["received"] is None) == plain


@given(st.lists(st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=3)))
def test_an_odd_row_is_kept_as_received(row: list[Any]) -> None:
    """A person can read what came, as JSON, in the language it came in."""
    (record,) = observe([[None, *row]])
    assert json.loads(record["received"].encode("utf-8")) == [None, *row]


@pytest.mark.parametrize("cells", [["é"], ["\ud800"], ["x" * 10_000], [10**5_000], [{(1,): 2}]])
def test_whatever_came_can_be_stored(cells: list[Any]) -> None:
    """Lone surrogates and numbers beyond Python's text limit once broke the whole page."""
    (record,) = observe([[T0, *cells]])
    assert 0 < len(record["received"].encode("utf-8")) <= 4_000


def test_nesting_beyond_reason_can_be_stored() -> None:
    """A row a JSON writer cannot follow to its end is named for what it is."""
    nest: list[Any] = []
    for _ in range(100_000):
        nest = [nest]
    (record,) = observe([[T0, nest]])
    assert "list" in record["received"]


@pytest.mark.parametrize("row", ["123456", b"123456", dict.fromkeys("123456", 0), set(range(6))])
def test_rows_that_merely_iterate_are_no_candles(row: Any) -> None:
    """zip() made a candle of 1970 out of the characters of "123456"."""
    assert all(record["open_time"] is None and record["received"] for record in observe([row, row]))


@pytest.mark.parametrize("odd", [True, False])
def test_a_bool_among_floats_is_no_price(*, odd: bool) -> None:
    """pyarrow reads [1.5, True] as 1.5 and 1.0."""
    first, second = observe([[T0, 1.5, 2, 1, 1, 1], [T0 + MINUTE_MS, odd, 2, 1, 1, 1]])
    assert first["open"] == 1.5
    assert math.isnan(second["open"])


def test_a_hexadecimal_time_is_no_time() -> None:
    """pyarrow reads the text 0x10 as 16."""
    assert observe([[hex(T0), 1, 2, 1, 1, 1]])[0]["open_time"] is None


def test_a_time_that_overflows_is_no_time() -> None:
    """Seconds whose milliseconds pass 2**64 came out as a minute of 2021."""
    seconds = (2**64 + T0) // 1_000 + 1
    assert observe([[seconds, 1, 2, 1, 1, 1]], layout=KRAKEN)[0]["open_time"] is None


def test_a_clock_that_cannot_be_is_kept_as_it_is() -> None:
    """An offset beyond 32 bits (24 days) must not wrap around into a plausible one."""
    assert observe([[T0, 1, 2, 1, 2, 1]], offset=2**32 + 1)[0]["clock_offset_ms"] == 2**32 + 1


# --- Final or forming -----------------------------------------------------------------------------

around = st.integers(-3 * MINUTE_MS, 5 * MINUTE_MS)


@given(
    st.lists(st.none() | st.integers(-3, 6) | st.integers(0, 120_000).map(float), max_size=6),
    around,
)
def test_final_is_closed_and_settled_or_followed(opens: list[float | None], now: int) -> None:
    """A row without a time, off the grid or in the future proves nothing about the one before."""
    times = [
        None if o is None else T0 + (o * MINUTE_MS if type(o) is int else int(o)) for o in opens
    ]
    seen = observe([[time, 1, 2, 1, 2, 1] for time in times], now=T0 + now)
    candles = [time for time in times if time is not None and time % MINUTE_MS == 0]
    for time, record in zip(times, seen, strict=True):
        if time is None:
            assert not record["final"]
        elif time in candles:
            closed = time + MINUTE_MS + SETTLE_MS <= T0 + now
            followed = any(time < later <= T0 + now for later in candles)
            assert record["final"] == (closed or followed)


@given(now=around, offset=st.integers(-10_000, 10_000), error=st.integers(-SETTLE_MS, SETTLE_MS))
def test_a_clock_offset_never_makes_a_forming_candle_final(
    now: int, offset: int, error: int
) -> None:
    """The exchange's clock is ahead or behind by up to 10 s, and measured no worse than settle_ms.

    With the exchange 4 s behind, our own clock marked a forming candle final.
    """
    truth = T0 + now
    forming = truth // MINUTE_MS * MINUTE_MS
    rows = [[forming - n * MINUTE_MS, 1, 2, 1, 2, 1] for n in range(5)]
    seen = observe(rows, now=truth + error, offset=offset + error)
    assert seen[0]["fetched_at"] == truth - offset
    assert not seen[0]["final"]
    assert seen[2]["final"]


@given(around, st.sampled_from(["1s", "1m", "5m", "1h", "1d"]), st.integers(0, 10_000))
def test_settled_before_is_on_the_grid_and_tight(now: int, timeframe: str, settle_ms: int) -> None:
    """The last settled candle closed at least settle_ms ago; the next one did not."""
    length = {"1s": 1_000, "1m": 60_000, "5m": 300_000, "1h": 3_600_000, "1d": DAY_MS}[timeframe]
    before = settled_before(T0 + now, timeframe=timeframe, settle_ms=settle_ms)
    assert before % length == 0
    assert before + settle_ms <= T0 + now < before + length + settle_ms
