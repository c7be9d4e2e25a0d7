"""Which partition a row belongs to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.routing import UNASKED, home_days
from crypto_pipeline.core.rows import CCXT_LAYOUT
from crypto_pipeline.core.rules import NO_TIME
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline_tests.core.builders import T0

DAY_NUMBER = T0 // DAY_MS
NOW = T0 + DAY_MS + 12 * 60 * MINUTE_MS


near = st.builds(
    int.__add__,
    st.sampled_from([T0 + DAY_MS + hours * 60 * MINUTE_MS for hours in (-1, 0, 1, 12)]),
    st.sampled_from([-1, 0, 1, 5_000, 5_001]),
)


def window_answer(rows: int) -> Answer:
    """Of a window from an hour before midnight to an hour after."""
    return Answer(
        symbol="BTC/USDT",
        timeframe="1m",
        window=Interval(T0 + DAY_MS - 60 * MINUTE_MS, T0 + DAY_MS + 60 * MINUTE_MS),
        rows=[None] * rows,
        layout=CCXT_LAYOUT,
        fetched_at=NOW + 4_000,
        clock_offset_ms=-4_000,
    )


@given(
    st.lists(
        st.lists(st.just(NO_TIME) | near | st.integers(T0 - DAY_MS, T0 + 3 * DAY_MS), max_size=5),
        max_size=4,
    ),
    st.booleans(),
)
def test_home_days(times: list[list[int]], extra_rows: bool) -> None:
    """Inside its window a row goes to its own day; outside, to the window's first day, or nowhere."""
    flat = [time for rows in times for time in rows]
    answers = [window_answer(len(rows)) for rows in times]
    days = home_days(np.array(flat, np.int64), answers, extra_rows=extra_rows)
    for time, day in zip(flat, days.tolist(), strict=True):
        if time in answers[0].window:
            assert day == time // DAY_MS
        elif extra_rows and NO_TIME < time <= NOW + 5_000:
            assert day == UNASKED
        else:
            assert day == DAY_NUMBER


@pytest.mark.parametrize("extra_rows", [True, False])
def test_a_row_without_a_time_is_never_left_out(*, extra_rows: bool) -> None:
    """It may have been a candle: the rules refuse it where it can be seen."""
    days = home_days(np.array([NO_TIME]), [window_answer(1)], extra_rows=extra_rows)
    assert days.tolist() == [DAY_NUMBER]
