"""Timeframes, days and instants."""

from datetime import UTC, datetime

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, timeframe_ms, to_ms, utc

year_9999 = 253_402_300_799_999


@pytest.mark.parametrize(
    ("timeframe", "length"),
    [("1s", 1_000), ("1m", 60_000), ("90m", 5_400_000), ("4h", 14_400_000), ("1d", DAY_MS)],
)
def test_lengths(timeframe: str, length: int) -> None:
    """A timeframe is a number of units."""
    assert timeframe_ms(timeframe) == length


@pytest.mark.parametrize(
    "timeframe", ["7m", "2d", "1w", "1M", "0m", "01m", "-1m", "", "m", "1", "1m ", "1٢m", "٣m"]
)
def test_what_divides_no_day_is_refused(timeframe: str) -> None:
    """A candle that crosses midnight has no daily partition; other scripts' digits are no digits."""
    with pytest.raises(ValueError, match=r"timeframe|divide"):
        timeframe_ms(timeframe)


@given(st.integers(0, year_9999))
def test_instants_survive_the_way_there_and_back(time: int) -> None:
    """To the millisecond until the year 9999, where a float of seconds no longer holds one."""
    assert to_ms(utc(time)) == time
    assert utc(time).microsecond == time % 1_000 * 1_000
    assert to_ms(pd.Timestamp(time, unit="ms", tz="UTC")) == time


@given(st.integers(0, year_9999))
def test_an_instant_lies_in_its_day(time: int) -> None:
    """A day is [start, start + 24 h)."""
    assert 0 <= time - day_start_ms(day_of(time)) < DAY_MS


def test_a_naive_time_is_refused() -> None:
    """Nobody knows which instant it means."""
    with pytest.raises(ValueError, match="no time zone"):
        to_ms(datetime(2023, 3, 1, tzinfo=UTC).replace(tzinfo=None))
