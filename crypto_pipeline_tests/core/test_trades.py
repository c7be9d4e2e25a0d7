"""Candles out of trades are what a person with a pencil would write down, however the pages are cut."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.timeframes import timeframe_ms
from crypto_pipeline.core.trades import CandleColumns, TradeAggregator

MINUTE_US = 60_000_000
Trade = tuple[int, float, float]
Candle = tuple[int, float, float, float, float, float]

steps = st.one_of(
    st.just(0),
    st.integers(1, 1_000),
    st.integers(1, 5 * MINUTE_US),
    st.just(MINUTE_US),
    st.integers(1, 30).map(lambda hours: hours * 60 * MINUTE_US),
)
numbers = st.floats(1e-8, 1e8)
trades_lists = st.lists(st.tuples(steps, numbers, numbers), max_size=60).map(
    lambda rows: [
        (int(time), price, amount)
        for time, (_, price, amount) in zip(
            1_700_000_040_000_000 + np.cumsum([step for step, _, _ in rows]), rows, strict=True
        )
    ]
)


def naive(trades: list[Trade], timeframe: str) -> list[Candle]:
    length = timeframe_ms(timeframe) * 1_000
    buckets: dict[int, list[Trade]] = defaultdict(list)
    for trade in trades:
        buckets[trade[0] // length].append(trade)
    return [
        (
            bucket * length // 1_000,
            inside[0][1],
            max(price for _, price, _ in inside),
            min(price for _, price, _ in inside),
            inside[-1][1],
            float(sum(Fraction(amount) for _, _, amount in inside)),
        )
        for bucket, inside in buckets.items()
    ]


def rows(columns: CandleColumns) -> list[Candle]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


def add(aggregator: TradeAggregator, trades: list[Trade]) -> None:
    times, prices, amounts = zip(*trades, strict=True) if trades else ((), (), ())
    aggregator.add(np.array(times, np.int64), np.array(prices, float), np.array(amounts, float))


def assert_same(made: list[Candle], true: list[Candle]) -> None:
    assert [candle[:5] for candle in made] == [candle[:5] for candle in true]
    assert [candle[5] for candle in made] == pytest.approx(
        [candle[5] for candle in true], rel=1e-12, abs=0
    )


@given(trades=trades_lists, data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_cutting_into_pages_and_takings_gives_the_same_candles(
    trades: list[Trade], data: st.DataObject
) -> None:
    """Pages end in mid-candle, at equal times, or are empty; candles are taken whenever it suits."""
    timeframes = ("1s", "1m", "1h", "1d")
    aggregator = TradeAggregator(timeframes)
    made: dict[str, list[Candle]] = {name: [] for name in timeframes}
    cuts = data.draw(st.lists(st.integers(0, len(trades)), max_size=8).map(sorted))
    for start, end in zip([0, *cuts], [*cuts, len(trades)], strict=True):
        add(aggregator, trades[start:end])
        if end and data.draw(st.booleans()):
            before = trades[end - 1][0] // 1_000
            for name, columns in aggregator.take(before).items():
                made[name] += rows(columns)
                assert all(row[0] + timeframe_ms(name) <= before for row in rows(columns))
    for name, columns in aggregator.take(4_000_000_000_000).items():
        assert_same(made[name] + rows(columns), naive(trades, name))


def test_a_candle_is_taken_once_and_only_when_it_has_ended() -> None:
    aggregator = TradeAggregator(["1m"])
    add(aggregator, [(0, 10.0, 1.0), (MINUTE_US - 1, 12.0, 2.0), (MINUTE_US, 11.0, 4.0)])
    assert rows(aggregator.take(59_999)["1m"]) == []
    assert rows(aggregator.take(60_000)["1m"]) == [(0, 10.0, 12.0, 10.0, 12.0, 3.0)]
    assert rows(aggregator.take(60_000)["1m"]) == []
    add(aggregator, [(2 * MINUTE_US - 1, 9.0, 8.0)])
    assert rows(aggregator.take(120_000)["1m"]) == [(60_000, 11.0, 11.0, 9.0, 9.0, 12.0)]


def test_minutes_without_trades_have_no_candle() -> None:
    aggregator = TradeAggregator(["1m"])
    add(aggregator, [(0, 1.0, 1.0), (10 * MINUTE_US, 1.0, 1.0)])
    assert [row[0] for row in rows(aggregator.take(10**9)["1m"])] == [0, 600_000]


def test_a_day_over_thousands_of_pages_loses_no_digit() -> None:
    """Adding page by page in float64 alone drifts: a big amount first swallows the small ones."""
    aggregator = TradeAggregator(["1d"])
    amounts = [1e9, *([1e-8] * 20_000)]
    for index, amount in enumerate(amounts):
        add(aggregator, [(index, 1.0, amount)])
    (candle,) = rows(aggregator.take(86_400_000)["1d"])
    assert candle[5] == math.fsum(amounts)
    assert candle[5] != sum(amounts)


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([[5, 4]], "trade 1 of the page, at 4 µs, is older than the one before it"),
        ([[5, 9], [8, 10]], "the page begins at 8 µs, before 9 µs"),
    ],
)
def test_a_trade_that_comes_late_is_refused(pages: list[list[int]], message: str) -> None:
    """It would change a candle that was handed out, or take a wrong open and close."""
    aggregator = TradeAggregator(["1m"])
    *before, last = pages
    for page in before:
        add(aggregator, [(time, 1.0, 1.0) for time in page])
    with pytest.raises(ValueError, match=message):
        add(aggregator, [(time, 1.0, 1.0) for time in last])


def test_a_trade_of_what_was_taken_is_refused() -> None:
    aggregator = TradeAggregator(["1m"])
    aggregator.take(60_000)
    with pytest.raises(ValueError, match="before 60000000 µs"):
        add(aggregator, [(59_999_999, 1.0, 1.0)])
    add(aggregator, [(60_000_000, 1.0, 1.0)])


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="1 times, 2 prices, 1 amounts"):
        TradeAggregator(["1m"]).add(np.zeros(1, np.int64), np.ones(2), np.ones(1))
