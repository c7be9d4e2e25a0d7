"""What the simulator's own trades do not show: trades on borders, in one instant, in spoiled answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.corridor.trade_history import TradeCandles
from crypto_pipeline.errors import BadAnswer, ExchangeError, RequestRefused
from crypto_pipeline_tests.corridor.streams import frame_of, streamed
from crypto_pipeline_tests.exchanges.tape import (
    MINUTE_NS,
    START,
    START_NS,
    Tape,
    playing,
    rows_of,
)


def played(
    tape: Tape, minutes: tuple[int, int], ccxt_id: str = "kraken", **named: Any
) -> tuple[list[TradeCandles], ExchangeError | None]:
    start, end = (START + minute * MINUTE_MS for minute in minutes)

    async def run() -> tuple[list[TradeCandles], ExchangeError | None]:
        async with playing(tape, ccxt_id) as exchange:
            return await streamed(exchange, {"1m": Interval(start, end)}, **named)

    return asyncio.run(run())


def minutes_of(batches: list[TradeCandles]) -> dict[int, float]:
    """Number of the minute → volume."""
    frame = frame_of(batches)
    numbers = (times_ms(frame["open_time"]) - START) // MINUTE_MS
    return dict(zip(numbers.tolist(), frame["volume"].round(9).tolist(), strict=True))


def volume(tape: Tape, *numbers: int) -> float:
    return round(sum(float(tape.amount(number)) for number in numbers), 9)


def test_a_trade_on_the_minute_belongs_to_the_minute_it_begins() -> None:
    """Half-open: the first instant is in, the last is not; so is the span."""
    offsets_us = [-1, 0, 59_999_999, 60_000_000, 119_999_999, 120_000_000, 120_000_001]
    tape = Tape([START_NS + us * 1_000 for us in offsets_us])
    batches, error = played(tape, (0, 2))
    assert error is None
    assert minutes_of(batches) == {0: volume(tape, 1, 2), 1: volume(tape, 3, 4)}
    frame = frame_of(batches)
    assert frame["open"].tolist() == [float(tape.price(1)), float(tape.price(3))]
    assert frame["close"].tolist() == [float(tape.price(2)), float(tape.price(4))]
    assert batches[-1].covered["1m"] == Interval(START, START + 2 * MINUTE_MS)
    assert len(tape.asked) == 1


def spoiled(change: Callable[[list[Any]], Any], **fields: Any) -> Callable[[Any], Any]:
    def spoil(content: Any) -> Any:
        change(rows_of(content))
        content["result"].update(fields)
        return content

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        spoiled(lambda rows: None, last=str(START_NS)),
        spoiled(lambda rows: rows.__setitem__(3, None)),
        spoiled(lambda rows: rows.__setitem__(3, [None] * 7)),
        spoiled(lambda rows: rows[3].__setitem__(0, "-100.5")),
        spoiled(lambda rows: rows[3].__setitem__(1, "0")),
        spoiled(lambda rows: rows.clear()),
        spoiled(lambda rows: rows.reverse()),
        spoiled(lambda rows: rows.__delitem__(0)),
        spoiled(lambda rows: rows.insert(4, rows[4])),
    ],
    ids=["last not moving", "null row", "row of nulls", "negative", "zero", "no rows", "reversed",
         "newer only", "twice"],
)  # fmt: skip
def test_an_answer_that_is_no_page_blurs_no_candle(spoil: Callable[[Any], Any]) -> None:
    tape = Tape([START_NS + n * 20 * 10**9 for n in range(60)], spoil={2: spoil})
    batches, error = played(tape, (0, 15))
    assert type(error) is BadAnswer
    # nineteen trades came, the last of them in the seventh minute, which is not over
    assert minutes_of(batches) == {n: volume(tape, *range(3 * n, 3 * n + 3)) for n in range(6)}
    assert batches[-1].covered["1m"] == Interval(START, START + 6 * MINUTE_MS)


def test_a_market_without_further_trades_is_covered_and_nothing_is_invented() -> None:
    """Its newest trades, asked for without a cursor, confirm that there are none."""
    tape = Tape([START_NS + n * 10 * 10**9 for n in range(15)])
    batches, error = played(tape, (0, 60))
    assert error is None
    assert sorted(minutes_of(batches)) == [0, 1, 2]
    assert batches[-1].covered["1m"] == Interval(START, START + 60 * MINUTE_MS)
    assert "since" not in tape.asked[-1]


def test_a_span_in_which_nobody_traded_is_covered_without_a_row() -> None:
    tape = Tape([START_NS - MINUTE_NS])
    batches, error = played(tape, (0, 60))
    assert error is None
    assert len(frame_of(batches)) == 0
    assert batches[-1].covered["1m"] == Interval(START, START + 60 * MINUTE_MS)


def test_a_span_before_trades_that_came_much_later_is_covered_by_their_page() -> None:
    tape = Tape([START_NS + 100 * MINUTE_NS])
    batches, error = played(tape, (0, 60))
    assert error is None
    assert len(frame_of(batches)) == 0
    assert batches[-1].covered["1m"] == Interval(START, START + 60 * MINUTE_MS)


def test_a_first_answer_without_trades_is_not_believed() -> None:
    """An outage that says "no trades": the newest trades say otherwise."""
    tape = Tape([START_NS + n * 10**9 for n in range(50)], spoil={0: spoiled(list.clear)})
    batches, error = played(tape, (0, 60))
    assert batches == []
    assert type(error) is BadAnswer
    assert "10 are among the newest" in str(error)


def test_nothing_among_the_newest_either_is_not_believed() -> None:
    empty = spoiled(list.clear)
    tape = Tape([START_NS + n * 10**9 for n in range(50)], spoil={0: empty, 1: empty})
    _, error = played(tape, (0, 60))
    assert type(error) is BadAnswer
    assert "not even those" in str(error)


# --- any other exchange ----------------------------------------------------------------------------


def test_other_exchanges_are_paged_by_time_once_their_reach_is_proven() -> None:
    """A trade from before the span shows that the exchange's trades go back so far."""
    tape = Tape([START_NS + n * 20 * 10**9 for n in range(-30, 60)])
    batches, error = played(tape, (0, 10), "gemini")
    assert error is None
    first = 30
    assert minutes_of(batches) == {
        n: volume(tape, *range(first + 3 * n, first + 3 * n + 3)) for n in range(10)
    }


def test_an_exchange_whose_trades_begin_after_the_span_is_refused() -> None:
    """One that serves its newest trades whatever it is asked would else look like a quiet market."""
    tape = Tape([START_NS + 60 * MINUTE_NS + n * 10**9 for n in range(50)])
    batches, error = played(tape, (0, 10), "gemini")
    assert batches == []
    assert type(error) is RequestRefused
    assert "may not reach back so far" in str(error)
    assert len(tape.asked) == 3


def test_more_trades_in_an_instant_than_a_page_holds_are_an_error() -> None:
    """Paging by time cannot pass them, and what lies behind them is not "no trades"."""
    tape = Tape(
        [START_NS - MINUTE_NS, *[START_NS + 10**9] * 30]
        + [START_NS + n * 10**9 for n in range(100, 120)]
    )
    batches, error = played(tape, (0, 2), "gemini")
    assert type(error) is BadAnswer
    assert "one instant" in str(error)
    assert minutes_of(batches) == {}
