"""What is asked of an exchange, and that what comes back is what it sent."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import Any

import pytest

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms, timeframe_ms, utc
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.canned import as_sent
from crypto_pipeline_tests.exchanges.conftest import (
    FORMING,
    KEYS,
    NOW,
    SYMBOLS,
    WINDOW,
    Asker,
)

DAY = day_start_ms(utc(NOW).date())


def times_of(answer: Answer) -> list[int]:
    position = answer.layout.positions[0]
    return [int(row[position]) * answer.layout.time_unit_ms for row in as_sent(answer.rows)]


@pytest.mark.parametrize(
    ("timeframe", "candles"), [("1m", 1), ("1m", 2), ("1m", 300), ("1m", 720), ("1m", 1_000),
                               ("1h", 300), ("1d", 300)]
)  # fmt: skip
def test_binance_is_asked_for_exactly_the_window(
    asker: Asker, timeframe: str, candles: int
) -> None:
    """One page, its first and its last candle included: no candle lies between two windows."""
    length = timeframe_ms(timeframe)
    end = FORMING // length * length
    window = Interval(end - candles * length, end)
    answer = asker.fetch("binance", window=window, timeframe=timeframe)
    (arrival,) = asker.asked("binance")
    assert arrival["params"]["startTime"] == str(window.start)
    assert arrival["params"]["endTime"] == str(window.end - length)
    assert arrival["params"]["limit"] == str(candles)
    assert times_of(answer) == list(range(*window, length))


@pytest.mark.parametrize(("timeframe", "candles"), [("1m", 1), ("1m", 300), ("1h", 300), ("1d", 9)])
def test_coinbaseexchange_is_asked_for_exactly_the_window(
    asker: Asker, timeframe: str, candles: int
) -> None:
    """Both its ends are inclusive, and one candle more than 300 would be an error."""
    length = timeframe_ms(timeframe)
    end = FORMING // length * length
    window = Interval(end - candles * length, end)
    answer = asker.fetch("coinbaseexchange", window=window, timeframe=timeframe)
    (arrival,) = asker.asked("coinbaseexchange")
    assert arrival["status"] == 200
    asked = [arrival["params"][name] for name in ("start", "end")]
    assert asked == [
        utc(time).strftime("%Y-%m-%dT%H:%M:%S.000Z") for time in (window.start, end - length)
    ]
    truth = asker.simulator.truth.candles(
        "coinbaseexchange", "BTC/USD", timeframe, window.start, window.end
    )
    assert sorted(t for t in times_of(answer) if t in window) == truth["open_time"].tolist()


def test_kraken_gets_the_windows_start_and_its_first_candle_comes(asker: Asker) -> None:
    """Kraken's ``since`` is exclusive: ccxt asks one interval earlier, and so the start is served."""
    answer = asker.fetch("kraken")
    (arrival,) = asker.asked("kraken")
    assert arrival["params"]["since"] == str(WINDOW.start // 1_000 - 60)
    assert "until" not in arrival["params"]
    assert times_of(answer)[0] <= WINDOW.start
    assert [t for t in times_of(answer) if t in WINDOW] == list(range(*WINDOW, MINUTE_MS))


@pytest.mark.parametrize("key", KEYS)
def test_windows_side_by_side_leave_no_candle_between_them(asker: Asker, key: str) -> None:
    """A day in windows of uneven length: each candle is served by its own window, once."""
    edges = [FORMING - minutes * MINUTE_MS for minutes in (290, 289, 240, 173, 60, 2, 0)]
    windows = [Interval(*pair) for pair in pairwise(edges)]

    async def call(wrapper: ExchangeWrapper) -> list[Answer]:
        await wrapper.load_markets()
        series = Series(SYMBOLS[key], "1m")
        return [await wrapper.fetch(series, window) for window in windows]

    answers = asker.run(key, call)
    assert len(asker.asked(key)) == len(windows)
    inside = [
        time
        for answer, window in zip(answers, windows, strict=True)
        for time in sorted(times_of(answer))
        if time in window
    ]
    truth = asker.simulator.truth.candles(key, SYMBOLS[key], "1m", edges[0], edges[-1])
    assert inside == truth["open_time"].tolist()


def test_markets_are_asked_for_once(asker: Asker) -> None:
    """A process that loads the markets every minute gets its address banned (ccxt issue 14639)."""

    async def call(wrapper: ExchangeWrapper) -> None:
        await asyncio.gather(*(wrapper.load_markets() for _ in range(5)))
        await wrapper.load_markets()
        series = Series(SYMBOLS[wrapper.key], "1m")
        await asyncio.gather(*(wrapper.fetch(series, WINDOW) for _ in range(5)))

    for key in KEYS:
        asker.run(key, call)
        log = asker.simulator.control.arrivals(exchange=key)
        assert [one["endpoint"] for one in log if one["endpoint"] != "candles"] == ["markets"]


def test_rows_are_neither_sorted_nor_filtered(asker: Asker) -> None:
    """ccxt sorts, cuts at ``since`` and ``limit``; what the exchange sent would be lost for good."""
    newest_first = asker.fetch("coinbaseexchange")
    times = times_of(newest_first)
    assert times == sorted(times, reverse=True)
    control = asker.simulator.control
    control.add_fault(act="bad_candles", spoil="outside", exchange="binance")
    assert min(times_of(asker.fetch("binance"))) < WINDOW.start
    control.clear_faults()
    control.add_fault(act="bad_candles", spoil="duplicate", exchange="binance")
    answer = asker.fetch("binance")
    assert len(answer.rows) == 1 + len(set(times_of(answer)))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("spoil", ["nan", "null", "null_row", "empty_row", "text", "nan_text"])
def test_one_unreadable_row_costs_one_candle_not_the_page(
    asker: Asker, key: str, spoil: str
) -> None:
    """A bare ``NaN`` is no JSON: the whole page was thrown away, and asked for again for ever."""
    asker.simulator.control.add_fault(
        act="bad_candles", spoil=spoil, exchange=key, open_times=[WINDOW.start + 5 * MINUTE_MS]
    )
    answer = asker.fetch(key)
    assert len(asker.asked(key)) == 1
    spoiled = [row for row in as_sent(answer.rows) if not _is_plain(row)]
    assert len(spoiled) == 1
    assert answer.layout.positions != ()


def _is_plain(row: Any) -> bool:
    try:
        return len(row) >= 6 and all(math.isfinite(float(cell)) for cell in row[:6])
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize("key", ["binance", "kraken"])
def test_concurrent_requests_do_not_mix_their_replies(asker: Asker, key: str) -> None:
    """Twelve requests under way at once, answered out of order: each has its own rows and clock."""
    symbols = ["BTC/USDT", "ETH/USDT"] if key == "binance" else ["BTC/USD", "ETH/USD"]
    control = asker.simulator.control
    control.add_fault(act="delay", latency=0.15, exchange=key, endpoint="candles", every=3)
    control.add_fault(
        act="status", status=503, exchange=key, endpoint="candles", symbol=symbols[0], count=3
    )
    windows = [Interval(start, start + 7 * MINUTE_MS)
               for start in range(WINDOW.start - 60 * MINUTE_MS, WINDOW.start, 10 * MINUTE_MS)]  # fmt: skip

    async def call(wrapper: ExchangeWrapper) -> list[Answer]:
        await wrapper.load_markets()
        return await asyncio.gather(
            *(wrapper.fetch(Series(s, "1m"), window) for window in windows for s in symbols)
        )

    answers = asker.run(key, call)
    assert len(answers) == 12
    for answer in answers:
        truth = asker.simulator.truth.candles(key, answer.symbol, "1m", *answer.window)
        position = answer.layout.positions
        rows = [
            [float(row[place]) for place in position[1:]]
            for row, time in zip(as_sent(answer.rows), times_of(answer), strict=True)
            if time in answer.window
        ]
        assert rows == truth[["open", "high", "low", "close", "volume"]].to_numpy().tolist()


def test_the_exchanges_clock_is_taken_from_its_answers(asker: Asker) -> None:
    """An exchange 4 s behind made the local clock call a forming candle final."""
    control = asker.simulator.control
    for seconds in (-4.0, 0.0, 7.5):
        control.set_clock_offset("binance", seconds)
        answer = asker.fetch("binance")
        truly = int(seconds * 1_000)
        assert truly - 1_000 <= answer.clock_offset_ms <= truly
        assert answer.exchange_now == NOW + answer.clock_offset_ms
