"""Pages of trades: each trade once, in order, or an error that says which answer was no page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crypto_pipeline.errors import (
    BadAnswer,
    ExchangeBlocked,
    ExchangeError,
    ExchangeUnavailable,
    RateLimited,
    RequestRefused,
)
from crypto_pipeline.exchanges.trades import TradesCursor, TradesPage
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.conftest import ATTEMPTS, NOW, WINDOW, Asker
from crypto_pipeline_tests.exchanges.tape import PAIR, START, START_NS, Tape, playing, rows_of

Spoil = Callable[[Any], Any]


async def walk(wrapper: ExchangeWrapper, start: int) -> list[TradesPage]:
    """Pages up to one that holds nothing new."""
    pages, cursor = [], TradesCursor.at(start)
    while True:
        page = await wrapper.fetch_trades("BTC/USD", cursor)
        if not len(page.times_us):
            return pages
        pages.append(page)
        cursor = page.next


def walked(tape: Tape, ccxt_id: str = "kraken") -> list[TradesPage]:
    async def run() -> list[TradesPage]:
        async with playing(tape, ccxt_id) as wrapper:
            return await walk(wrapper, START)

    return asyncio.run(run())


def joined(pages: list[TradesPage]) -> tuple[list[int], list[float], list[float]]:
    columns = zip(*((p.times_us, p.prices, p.amounts) for p in pages), strict=True)
    times, prices, amounts = (np.concatenate(column).tolist() for column in columns)
    return times, prices, amounts


def assert_all_once(tape: Tape, pages: list[TradesPage], unit_ns: int) -> None:
    times, prices, amounts = joined(pages)
    assert times == [ns // unit_ns * unit_ns // 1_000 for ns in tape.times_ns]
    numbers = range(len(tape.times_ns))
    assert prices == [float(tape.price(n)) for n in numbers]
    assert amounts == [float(tape.amount(n)) for n in numbers]


STEPS = {
    "a second apart": 1_000_000_000,
    "seven in a millisecond": 143_000,
    "seven in a microsecond": 143,
}


@pytest.mark.parametrize("name", STEPS)
def test_trades_of_one_millisecond_are_neither_lost_nor_doubled_by_kraken(name: str) -> None:
    """ccxt's own ``since`` is cut to seconds: paging by it repeats trades, or skips them."""
    tape = Tape([START_NS + n * STEPS[name] // 1_000 * 1_000 for n in range(73)])
    pages = walked(tape)
    assert_all_once(tape, pages, 1_000)
    assert tape.asked[0]["since"] == str(START_NS - 1)
    assert len(pages) > 7


def test_kraken_trades_of_the_very_same_instant_are_told_apart_by_their_ids() -> None:
    """One order that meets several fills them at once, and a page may end between them."""
    times = [START_NS + second * 10**9 for second in range(9)]
    tape = Tape([times[0]] + [times[1]] * 6 + times[2:] + [times[-1]] * 3)
    pages = walked(tape)
    with_ties = [ns for page in pages for ns in page.times_us.tolist()]
    assert with_ties == [ns // 1_000 for ns in tape.times_ns]


def test_kraken_times_are_exact_and_never_cross_into_the_next_candle() -> None:
    """A float64 of seconds holds a quarter of a microsecond; rounding up would move the trade."""
    odd = [START_NS + 827_736_900, START_NS + 59_999_999_600, START_NS + 60_000_000_000]
    times, _, _ = joined(walked(Tape(odd)))
    minute_us = (START_NS + 60_000_000_000) // 1_000
    assert times == [START_NS // 1_000 + 827_737, minute_us - 1, minute_us]


def test_without_a_cursor_the_newest_come() -> None:
    tape = Tape([START_NS + n * 10**9 for n in range(50)])

    async def run() -> TradesPage:
        async with playing(tape) as wrapper:
            return await wrapper.fetch_trades("BTC/USD")

    page = asyncio.run(run())
    assert page.times_us.tolist() == [ns // 1_000 for ns in tape.times_ns[-10:]]
    assert tape.asked == [{"pair": PAIR}]


def changed(row: int, place: int, value: Any) -> Spoil:
    def spoil(content: Any) -> Any:
        rows_of(content)[row][place] = value
        return content

    return spoil


def replaced(row: int, value: Any) -> Spoil:
    def spoil(content: Any) -> Any:
        rows_of(content)[row] = value
        return content

    return spoil


def result(**fields: Any) -> Spoil:
    return lambda content: {"error": [], "result": {**content["result"], **fields}}


def without_rows(content: Any) -> Any:
    return {"error": [], "result": {PAIR: [], "last": content["result"]["last"]}}


def only_newer(content: Any) -> Any:
    """What an exchange that ignores ``since`` does."""
    return {"error": [], "result": {PAIR: rows_of(content)[1:], "last": content["result"]["last"]}}


ROW = "row 4 of 10 is not a trade with a price, an amount, a time and an id"
SPOILED: dict[str, tuple[Spoil, str]] = {
    "null row": (replaced(4, None), ROW),
    "row of nulls": (replaced(4, [None] * 7), ROW),
    "short row": (replaced(4, ["1", "2"]), ROW),
    "text": (replaced(4, "a trade"), ROW),
    "null price": (changed(4, 0, None), ROW),
    "word for a price": (changed(4, 0, "free"), ROW),
    "NaN text": (changed(4, 0, "NaN"), ROW),
    "infinite": (changed(4, 1, "inf"), ROW),
    "true": (changed(4, 0, True), ROW),
    "zero price": (changed(4, 0, "0.0"), ROW),
    "negative price": (changed(4, 0, "-1.5"), ROW),
    "zero amount": (changed(4, 1, "0"), ROW),
    "negative amount": (changed(4, 1, "-0.5"), ROW),
    "null time": (changed(4, 2, None), ROW),
    "negative time": (changed(4, 2, -1.0), ROW),
    "time beyond the calendar": (changed(4, 2, 1e15), ROW),
    "no id": (changed(4, 6, None), ROW),
    "out of order": (changed(4, 2, START_NS / 1e9), "is older than the one before it"),
    "in the future": (changed(9, 2, 5e9), "in the future"),
    "a trade twice": (changed(4, 6, 13), "1 of its trades twice"),
    "last not moving": (result(last=str(START_NS)), "does not move on"),
    "last missing": (result(last=None), "names no last trade"),
    "last no number": (result(last="soon"), "names no last trade"),
    "last null row": (replaced(9, None), "NoneType"),
    "no rows": (without_rows, "does not hold trade 10"),
    "a trade left out": (only_newer, "does not hold trade 10"),
    "no list": (result(**{PAIR: {"0": 1}}), "holds no trades of BTC/USD"),
    "empty result": (lambda _: {"error": [], "result": {}}, "holds no trades of BTC/USD"),
    "no result": (lambda _: {"error": []}, "holds no trades of BTC/USD"),
    "another pair": (
        lambda content: {"error": [], "result": {"XXBTZEUR": rows_of(content), "last": "1"}},
        "holds no trades of BTC/USD",
    ),
    "an empty object": (lambda _: {}, "holds no trades of BTC/USD"),
    "a list": (lambda _: [], "holds no trades of BTC/USD"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_no_page_of_trades_is_an_error_and_never_no_trades(name: str) -> None:
    """A trade that is left out blurs a candle for good; ccxt takes half of these for an empty list."""
    spoil, message = SPOILED[name]
    tape = Tape([START_NS + n * 10**9 for n in range(40)], spoil={1: spoil})
    with pytest.raises(BadAnswer, match=message) as caught:
        walked(tape)
    assert "kraken BTC/USD trades after 2023-11-14T22:14:" in str(caught.value)
    assert len(str(caught.value)) < 1_500
    assert len(tape.asked) == 2


WIRE: dict[str, tuple[dict[str, Any], type[ExchangeError]]] = {
    "html": ({"act": "body", "body": "html"}, BadAnswer),
    "null": ({"act": "body", "body": "null", "content_type": "application/json"}, BadAnswer),
    "nothing": ({"act": "no_content"}, BadAnswer),
    "cut json": ({"act": "cut_json"}, BadAnswer),
    "cut gzip": ({"act": "cut_gzip"}, BadAnswer),
    "drop in mid body": ({"act": "drop_mid_body"}, ExchangeUnavailable),
    "503": ({"act": "status", "status": 503, "body": "html"}, ExchangeUnavailable),
    "529": ({"act": "status", "status": 529, "body": "list"}, ExchangeUnavailable),
    "429": ({"act": "status", "status": 429}, RateLimited),
    "wrong pair": ({"act": "wrong_pair"}, BadAnswer),
    "empty result": ({"act": "body", "body": '{"error": [], "result": {}}'}, BadAnswer),
}


async def one_page(wrapper: ExchangeWrapper) -> TradesPage:
    await wrapper.load_markets()
    return await wrapper.fetch_trades("BTC/USD", TradesCursor.at(WINDOW.start))


@pytest.mark.parametrize("name", WIRE)
def test_faults_on_the_wire_are_typed_and_tried_again(asker: Asker, name: str) -> None:
    """One that passes costs attempts and no trade; one that stays is told after the last."""
    fault, kind = WIRE[name]
    control = asker.simulator.control
    whole = asker.run("kraken", one_page)
    control.add_fault(exchange="kraken", endpoint="trades", count=ATTEMPTS - 1, **fault)
    page = asker.run("kraken", one_page)
    assert page.times_us.tolist() == whole.times_us.tolist()
    control.clear_faults()
    control.add_fault(exchange="kraken", endpoint="trades", **fault)
    with pytest.raises(kind) as caught:
        asker.run("kraken", one_page)
    assert type(caught.value) is kind
    assert "kraken BTC/USD trades after 2024-03-15T12:03:59" in str(caught.value)


def test_a_page_says_when_it_came_by_both_clocks(asker: Asker) -> None:
    asker.simulator.control.set_clock_offset("kraken", -4.0)
    page = asker.run("kraken", one_page)
    assert page.fetched_at == NOW
    assert -5_000 <= page.clock_offset_ms <= -4_000
    assert page.exchange_now == NOW + page.clock_offset_ms
    truth = asker.simulator.truth.trades("kraken", "BTC/USD", WINDOW.start, NOW)
    number = len(page.times_us)
    assert page.times_us.tolist() == truth["time_us"].tolist()[:number]
    assert page.prices.tolist() == truth["price"].tolist()[:number]
    assert page.amounts.tolist() == truth["amount"].tolist()[:number]
    assert number > 20


def test_blocks_and_unknown_symbols_are_not_tried_again(asker: Asker) -> None:
    async def unknown(wrapper: ExchangeWrapper) -> TradesPage:
        await wrapper.load_markets()
        return await wrapper.fetch_trades("DOGE/BTC", TradesCursor.at(WINDOW.start))

    with pytest.raises(RequestRefused, match="lists no market DOGE/BTC"):
        asker.run("kraken", unknown)
    control = asker.simulator.control
    control.add_fault(act="status", status=451, exchange="kraken", endpoint="trades")
    with pytest.raises(ExchangeBlocked):
        asker.run("kraken", one_page)
    assert len(control.arrivals(exchange="kraken", endpoint="trades")) == 1


# --- any other exchange: by time, in milliseconds -------------------------------------------------


def test_paging_by_time_keeps_every_trade_of_a_border_millisecond() -> None:
    """Newest first, several a millisecond: those the page before held are known by their ids."""
    tape = Tape([START_NS + n * 250_000 for n in range(90)])
    pages = walked(tape, "gemini")
    assert_all_once(tape, pages, 1_000_000)
    assert len(pages) > 9


def test_a_page_of_one_instant_cannot_advance_and_holds_nothing_new() -> None:
    """More trades in one millisecond than a page holds: what `corridor.trade_history` refuses."""
    tape = Tape([START_NS + 10**9] * 30 + [START_NS + 2 * 10**9])
    pages = walked(tape, "gemini")
    assert [len(page.times_us) for page in pages] == [10]


@pytest.mark.parametrize(
    "spoil",
    [{"price": None}, {"amount": "0"}, {"timestampms": None}, {"tid": None}, {"price": "free"}],
)
def test_a_row_that_ccxt_cannot_read_is_named(spoil: dict[str, Any]) -> None:
    def spoiled(rows: Any) -> Any:
        rows[4].update(spoil)
        return rows

    tape = Tape([START_NS + n * 10**9 for n in range(40)], spoil={1: spoiled})
    with pytest.raises(BadAnswer, match="row 4 of 10 is not a trade"):
        walked(tape, "gemini")


def test_an_exchange_that_ignores_since_is_found_out_by_its_second_page() -> None:
    """ccxt's gate sends no ``since`` for spot: the newest come again, and the cursor's trade is gone."""
    tape = Tape([START_NS + n * 10**9 for n in range(40)], spoil={1: lambda rows: rows[:5]})
    with pytest.raises(BadAnswer, match="does not hold trade 10"):
        walked(tape, "gemini")
