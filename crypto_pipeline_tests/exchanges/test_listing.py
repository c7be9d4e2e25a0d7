"""A symbol's trading life: its first and its last candle, or nothing where an answer may lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crypto_pipeline.core.coverage import TradingLife
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.errors import ExchangeError, RequestRefused
from crypto_pipeline.exchanges.listing import trading_life
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.exchanges.conftest import KEYS, NOW, SYMBOLS, Asker

TODAY = NOW // DAY_MS * DAY_MS
SINCE = TODAY - 700 * DAY_MS
#: At noon; three pages of daily candles after ``SINCE``, and two before today.
LISTED = TODAY - 60 * DAY_MS - DAY_MS // 2
LISTED_EARLY = TODAY - 330 * DAY_MS - DAY_MS // 2
DELISTED = TODAY - 10 * DAY_MS + 18 * 60 * MINUTE_MS
LONG_GONE = TODAY - 320 * DAY_MS + 18 * 60 * MINUTE_MS

_LIVES = {
    "NEW": {"listed": LISTED},
    "OLD": {},
    "GONE": {"listed": LISTED, "delisted": DELISTED},
    "LONG": {"listed": LISTED_EARLY, "delisted": LONG_GONE},
    "ENDED": {"delisted": DELISTED},
    "TODAY": {"listed": LISTED, "delisted": TODAY + 60 * MINUTE_MS},
}
FAST = {"enableRateLimit": False}
DELISTS = ("binance", "coinbaseexchange")  # kraken no longer lists what it has delisted


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    config = SimulatorConfig.parse(
        {
            "clock": {"frozen_at": NOW},
            "exchanges": {
                key: {
                    "symbols": {f"{base}/{quoted(key)}": life for base, life in _LIVES.items()},
                    "quiet_rate": 0.3,
                }
                for key in KEYS
            },
        },
        origin="the test",
    )
    with running_simulator(config) as handle:
        yield handle


@pytest.fixture
def ask(exchanges: SimulatorHandle) -> Asker:
    exchanges.control.reset()
    return Asker(exchanges)


def quoted(key: str) -> str:
    return SYMBOLS[key].split("/")[1]


def life(ask: Asker, key: str, base: str, *, since: int = SINCE, **fields: Any) -> TradingLife:
    symbol = f"{base}/{quoted(key)}"

    async def call(wrapper: ExchangeWrapper) -> TradingLife:
        await wrapper.load_markets()
        return await trading_life(wrapper, symbol, since=since)

    return ask.run(key, call, symbols=[symbol], ccxt=FAST, **fields)


def last_candle_ends(ask: Asker, key: str, base: str, before: int) -> int:
    """Where quiet minutes are left out, the last candle is not the last minute's."""
    start = before - 60 * MINUTE_MS
    truth = ask.simulator.truth.candles(key, f"{base}/{quoted(key)}", "1m", start, before)
    return int(truth["open_time"].iloc[-1]) + MINUTE_MS


@pytest.mark.parametrize("key", DELISTS)
def test_the_first_minute_is_found(ask: Asker, key: str) -> None:
    """A candle of the day of listing says nothing of the minutes before: they would be "lost"."""
    found = life(ask, key, "NEW")
    assert (found.first, found.last) == (LISTED, None)
    assert "first candle" in found.evidence


def test_where_only_the_day_is_served_the_day_is_the_answer(ask: Asker) -> None:
    """Kraken's hours go back a month: what is before that day is not listed yet, no more is said."""
    found = life(ask, "kraken", "NEW")
    assert (found.first, found.last) == (LISTED // DAY_MS * DAY_MS, None)


@pytest.mark.parametrize("key", KEYS)
def test_a_symbol_that_was_listed_before_has_no_first(ask: Asker, key: str) -> None:
    """Whether it is a day before, or years: its trading did not begin after ``since``."""
    assert life(ask, key, "OLD").first is None
    assert life(ask, key, "NEW", since=LISTED // DAY_MS * DAY_MS + DAY_MS).first is None


@pytest.mark.parametrize("key", DELISTS)
def test_a_first_day_that_is_the_day_asked_from_is_found(ask: Asker, key: str) -> None:
    """``start`` in the configuration is often the day of the listing, which began at noon."""
    assert life(ask, key, "NEW", since=LISTED // DAY_MS * DAY_MS).first == LISTED


@pytest.mark.parametrize("key", DELISTS)
@pytest.mark.parametrize(
    ("base", "first", "last"),
    [("GONE", LISTED, DELISTED), ("LONG", LISTED_EARLY, LONG_GONE), ("ENDED", None, DELISTED)],
)
def test_the_last_minute_is_found(
    ask: Asker, key: str, base: str, first: int | None, last: int
) -> None:
    """Of a symbol the exchange lists as not trading, also with pages of silence after it."""
    found = life(ask, key, base)
    assert (found.first, found.last) == (first, last_candle_ends(ask, key, base, last))
    assert "not trading" in found.evidence


def test_without_the_exchange_saying_so_a_symbol_has_not_ended(ask: Asker) -> None:
    """Silence of days may be a halt, or an illiquid symbol; the listing decides."""

    async def call(wrapper: ExchangeWrapper) -> TradingLife:
        await wrapper.load_markets()
        wrapper._ccxt.markets["GONE/USDT"]["active"] = None
        return await trading_life(wrapper, "GONE/USDT", since=SINCE)

    found = ask.run("binance", call, symbols=["GONE/USDT"])
    assert (found.first, found.last) == (LISTED, None)


@pytest.mark.parametrize("key", DELISTS)
def test_on_the_day_itself_nothing_is_said_to_have_ended(ask: Asker, key: str) -> None:
    """A halt looks the same until the day is over."""
    assert life(ask, key, "TODAY").last is None


def test_a_symbol_that_is_not_listed_any_more_is_refused_not_explained(ask: Asker) -> None:
    """Kraken drops it from its markets: nothing can be asked, so nothing is known."""
    with pytest.raises(RequestRefused):
        life(ask, "kraken", "GONE")


def test_without_daily_candles_nothing_is_known(ask: Asker) -> None:
    """An exchange of intraday candles only: no request is made for others."""

    async def call(wrapper: ExchangeWrapper) -> TradingLife:
        wrapper._ccxt.timeframes = {"1m": "1m", "1h": "1h"}
        return await trading_life(wrapper, "NEW/USDT", since=SINCE)

    found = ask.run("binance", call, symbols=["NEW/USDT"])
    assert (found.first, found.last) == (None, None)
    assert "no daily candles" in found.evidence
    assert ask.asked("binance") == []


def test_where_history_is_cut_off_its_edge_is_no_listing(ask: Asker) -> None:
    """An exchange that serves the newest candles only has an oldest one of every symbol."""
    found = life(ask, "binance", "OLD", habits={"history": 1_000})
    assert found.first is None
    assert life(ask, "binance", "NEW", habits={"history": 1_000}).first is None


@pytest.mark.parametrize("key", DELISTS)
@pytest.mark.parametrize("base", ["LONG", "NEW", "OLD"])
def test_an_empty_answer_never_makes_a_wrong_end(ask: Asker, key: str, base: str) -> None:
    """ccxt turns failures into ``[]``: after one to three of them nothing wrong is said."""
    ends = {
        "LONG": (LISTED_EARLY, last_candle_ends(ask, key, "LONG", LONG_GONE)),
        "NEW": (LISTED, None),
        "OLD": (None, None),
    }[base]
    fault = {"act": "body", "body": "list", "content_type": "application/json"}
    for found in spoiled(ask, key, base, fault):
        assert isinstance(found, TradingLife)
        assert found.first in (None, ends[0])
        assert found.last in (None, ends[1])


@pytest.mark.parametrize("key", DELISTS)
@pytest.mark.parametrize(
    "fault", [{"act": "status", "status": 503}, {"act": "drop_mid_body"}, {"act": "cut_json"}]
)
def test_a_failed_request_is_raised(ask: Asker, key: str, fault: dict[str, Any]) -> None:
    """Whichever it is: what the others said is not the whole truth."""
    for found in spoiled(ask, key, "LONG", fault):
        assert isinstance(found, ExchangeError)


def spoiled(
    ask: Asker, key: str, base: str, fault: dict[str, Any]
) -> list[TradingLife | ExchangeError]:
    """What is found when one, two or three requests in a row are spoiled, wherever they are."""
    control = ask.simulator.control
    symbol = f"{base}/{quoted(key)}"

    async def call(wrapper: ExchangeWrapper) -> list[TradingLife | ExchangeError]:
        await wrapper.load_markets()
        whole = await trading_life(wrapper, symbol, since=SINCE)
        found: list[TradingLife | ExchangeError] = []
        requests = len(ask.asked(key))
        assert requests > 1
        for count in (1, 2, 3):
            for nth in range(1, requests + 1):
                control.clear_faults()
                for number in range(nth, nth + count):
                    control.add_fault(endpoint="candles", nth=number, **fault)
                try:
                    found.append(await trading_life(wrapper, symbol, since=SINCE))
                except ExchangeError as error:
                    found.append(error)
        control.clear_faults()
        assert await trading_life(wrapper, symbol, since=SINCE) == whole
        return found

    return ask.run(key, call, symbols=[symbol], retry={"attempts": 1}, ccxt=FAST)
