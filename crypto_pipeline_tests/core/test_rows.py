"""The fast way of reading rows says what the careful way says, or nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.rows import CCXT_LAYOUT, Layout, plain_rows, row_columns

LAYOUTS = [CCXT_LAYOUT, Layout((0, 3, 2, 1, 4, 5), 1_000)]

texts = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(["-0", "+0", "-00", "0", "-1", "18446744073709551617"]),
    st.text("0123456789.eE+-_ naifty", max_size=8),
    st.text(max_size=3),
)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
odd = st.one_of(st.none(), st.booleans(), st.lists(st.integers(), max_size=2), st.just({}))
times = st.one_of(
    st.integers(0, 2**41), st.integers(0, 2**41).map(str), st.integers(0, 2**41).map(float)
)
plain_row = st.tuples(times, *([st.one_of(numbers, st.floats(0, 1e9).map(repr))] * 5)).map(list)
any_row = st.one_of(
    st.lists(st.one_of(numbers, texts, odd, times), max_size=9),
    st.tuples(plain_row, st.lists(st.one_of(numbers, texts, odd), max_size=6)).map(
        lambda both: both[0] + both[1]
    ),
)


def read(rows: Any, layout: Layout) -> tuple[Any, ...]:
    time, values, received = row_columns(rows, layout)
    assert time.dtype == np.int64
    kept = received if received and any(received) else None
    return time.tolist(), [column.view(np.int64).tolist() for column in values], kept


@settings(max_examples=300)
@given(st.lists(st.one_of(plain_row, any_row), min_size=8, max_size=12), st.sampled_from(LAYOUTS))
@example(
    [[1_700_000_000_000, "0.1", "1e-5", "17.30", "5e-324", "1.7976931348623157e308", None]] * 8,
    CCXT_LAYOUT,
)
@example([[1_700_000_000_000, "0.1", "nan", "1", "1", "1"]] * 8, CCXT_LAYOUT)
@example([[1_700_000_000_000, "-0", "-0.0", "-0e0", "0", -0.0]] * 8, CCXT_LAYOUT)
@example([[1_700_000_000_000, 1, 1, 1, 1, 1]] * 8, LAYOUTS[1])
@example([[2**63, 1, 1, 1, 1, 1]] * 8, CCXT_LAYOUT)
@example([[-1, 1, 1, 1, 1, 1]] * 8, CCXT_LAYOUT)
def test_plain_rows_are_read_as_any_others(rows: list[list[object]], layout: Layout) -> None:
    text = json.dumps(rows)
    sent = json.loads(text)
    found = plain_rows(text, lambda: sent)
    if found is not None:
        assert len(found) == len(sent)
        assert read(found, layout) == read(sent, layout)


def test_texts_spelt_with_escapes_are_read_as_any_others() -> None:
    """JSON may write any character of a text by its number."""
    for text in (r"\u002d0", r"-\u0030", r"\u0031.5", r"1\u002e5", "-0", "1.5"):
        page = f'[{", ".join([f"""[1700000000000, "{text}", 1, 1, 1, 1]"""] * 8)}]'
        found = plain_rows(page, lambda page=page: json.loads(page))  # type: ignore[misc]
        assert found is None or read(found, CCXT_LAYOUT) == read(json.loads(page), CCXT_LAYOUT)


@given(st.lists(st.tuples(*[st.decimals("1e-12", "1e12", places=12).map(str)] * 5), min_size=8))
def test_decimal_texts_become_the_nearest_numbers(prices: list[tuple[str, ...]]) -> None:
    """As Python reads them, bit by bit: what is stored is compared with what comes again."""
    rows = [[number, *texts] for number, texts in enumerate(prices)]
    found = plain_rows(orjson.dumps(rows).decode(), list)
    assert found is not None
    _, values, received = row_columns(found, CCXT_LAYOUT)
    assert received is None
    assert [list(map(float, texts)) for texts in zip(*prices, strict=True)] == [
        column.tolist() for column in values
    ]


def test_a_page_of_usual_rows_is_read_the_fast_way() -> None:
    row = [1_700_000_000_000, "1.5", "2", "1", "1.75", "0", 1, "2", 3, "4", "5", "0"]
    assert plain_rows(orjson.dumps([row] * 1_000).decode(), list) is not None
    for text in ("[[1]]", "{}", "[]", "[[" * 100_000, orjson.dumps([row] * 3).decode()):
        assert plain_rows(text, list) is None
