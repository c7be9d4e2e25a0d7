"""Symbols that are listed and delisted: minutes outside their life are named so, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_of, day_start_ms, utc
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.pipelines import Pipeline, results
from crypto_pipeline_tests.simulator.http_calls import get

FIRST = date(2024, 3, 1)
START = day_start_ms(FIRST)
LISTED = START + 3 * DAY_MS + 12 * 60 * MINUTE_MS
DELISTED = START + 5 * DAY_MS + 18 * 60 * MINUTE_MS
END = START + 8 * DAY_MS
NOW = END + DAY_MS + 600_000
QUOTES = {"binance": "USDT", "coinbaseexchange": "USD"}
HALTED, RESUMED = START + 20 * 60 * MINUTE_MS, START + 2 * DAY_MS + 10 * 60 * MINUTE_MS


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    config = SimulatorConfig.parse(
        {
            "clock": {"frozen_at": NOW},
            "exchanges": {
                key: {
                    "symbols": {
                        f"BTC/{quote}": {},
                        f"NEW/{quote}": {"listed": LISTED, "delisted": DELISTED},
                    },
                    "quiet_rate": 0.1,
                }
                for key, quote in QUOTES.items()
            },
        },
        origin="the test",
    )
    with running_simulator(config) as simulator:
        yield simulator


@pytest.fixture
def candles(exchanges: SimulatorHandle, pipeline: Callable[..., Pipeline]) -> Pipeline:
    exchanges.control.reset()
    return pipeline(exchanges, start=FIRST)


def causes(candles: Pipeline, symbol: str) -> dict[int, str]:
    """Each missing minute's cause in the ledger."""
    return {
        minute: cause
        for start, end, cause in candles.rows(
            "SELECT (extract(epoch FROM gap_start) * 1000)::bigint,"
            " (extract(epoch FROM gap_end) * 1000)::bigint, cause FROM candle_gaps"
            " WHERE symbol = %s",
            symbol,
        )
        for minute in range(start, end, MINUTE_MS)
    }


def key(exchange: str, start: int) -> str:
    return f"{day_of(start)}|{exchange}"


@pytest.mark.parametrize("exchange", QUOTES)
def test_a_backfill_tells_a_listing_and_a_delisting_from_what_is_lost(
    candles: Pipeline, exchange: str
) -> None:
    """One run over days before, during and after: every partition complete, every minute named."""
    result = candles.run(key(exchange, START), key(exchange, END - DAY_MS))
    truth = candles.truth(exchange, START, END)
    assert candles.candles().equals(truth)
    new = f"NEW/{QUOTES[exchange]}"
    there = set(truth.loc[truth["symbol"] == new, "open_time"])
    last = max(there) + MINUTE_MS  # where quiet minutes are left out, before the delisting
    named = causes(candles, new)
    assert set(named) == set(range(START, END, MINUTE_MS)) - there
    for minute, cause in named.items():
        expected = "no_trades"
        if minute < LISTED:
            expected = "not_listed_yet"
        elif minute >= last:
            expected = "delisted"
        assert cause == expected, (minute - LISTED) / MINUTE_MS
    failed = [name for name, check in results(result).items() if not check.passed]
    assert failed == []


@pytest.mark.parametrize("lost_from", [LISTED, DELISTED - 40 * MINUTE_MS])
@pytest.mark.parametrize("exchange", QUOTES)
def test_candles_lost_beside_a_listing_are_not_taken_for_silence_outside_it(
    candles: Pipeline, exchange: str, lost_from: int
) -> None:
    """A page without the first, or the last, forty minutes: unknown, and asked for again."""
    new = f"NEW/{QUOTES[exchange]}"
    lost = range(lost_from, lost_from + 40 * MINUTE_MS, MINUTE_MS)
    length = {"binance": 1_000, "coinbaseexchange": 300}[exchange] * MINUTE_MS
    page = START + (lost_from - START) // length * length
    starts = {
        "binance": {"startTime": str(page)},
        "coinbaseexchange": {"start": f"{utc(page):%Y-%m-%dT%H:%M:%S.000Z}"},
    }
    control = candles.simulator.control
    control.add_fault(
        act="bad_candles", spoil="missing", open_times=list(lost), symbol=new,
        exchange=exchange, params=starts[exchange],
    )  # fmt: skip
    days = key(exchange, START), key(exchange, END - DAY_MS)
    candles.run(*days)
    named = causes(candles, new)
    truth = candles.truth(exchange, START, END)
    there = set(truth.loc[truth["symbol"] == new, "open_time"])
    assert {named[minute] for minute in lost if minute in there} == {"unknown"}

    control.clear_faults()
    control.set_clock(frozen_at=NOW + 2 * MINUTE_MS)
    candles.run(*days)
    assert candles.candles().equals(truth)


@pytest.mark.parametrize("exchange", QUOTES)
def test_an_empty_answer_inside_a_life_is_no_end_of_it(candles: Pipeline, exchange: str) -> None:
    """ccxt turns failures into ``[]``: of one symbol in its life, of another on the newest days."""
    control = candles.simulator.control
    for base, start in (("NEW", LISTED + DAY_MS), ("BTC", END - DAY_MS)):
        symbol = f"{base}/{QUOTES[exchange]}"
        length, name = (1_000, "startTime") if exchange == "binance" else (300, "start")
        page = START + -(-(start - START) // (length * MINUTE_MS)) * length * MINUTE_MS
        value = str(page) if exchange == "binance" else f"{utc(page):%Y-%m-%dT%H:%M:%S.000Z}"
        control.add_fault(
            act="body", body="list", content_type="application/json",
            exchange=exchange, symbol=symbol, params={name: value},
        )  # fmt: skip
    candles.run(key(exchange, START), key(exchange, END - DAY_MS))
    assert {fault["acted"] for fault in control.faults()} == {1}
    truth = candles.truth(exchange, START, END)
    for base in ("NEW", "BTC"):
        symbol = f"{base}/{QUOTES[exchange]}"
        named = causes(candles, symbol)
        traded = truth.loc[truth["symbol"] == symbol, "open_time"]
        lost = {named[minute] for minute in traded if minute in named}
        assert lost == {"unknown"}


@pytest.fixture(scope="module")
def halted() -> Iterator[SimulatorHandle]:
    """Nothing traded for more than a day, and Binance listed its markets as it lists delisted ones."""
    config = SimulatorConfig.parse(
        {
            "clock": {"frozen_at": RESUMED},
            "exchanges": {"binance": {"symbols": ["BTC/USDT"], "outages": [(HALTED, RESUMED)]}},
        },
        origin="the test",
    )
    with running_simulator(config) as simulator:
        yield simulator


@pytest.mark.parametrize("days", [1, 2])
def test_what_is_traded_again_after_a_halt_is_collected(
    halted: SimulatorHandle, pipeline: Callable[..., Pipeline], days: int
) -> None:
    """What looked delisted once must not be taken for it ever after, whatever partitions say."""
    candles, control = pipeline(halted, start=FIRST), halted.control
    control.reset()
    control.set_clock(frozen_at=RESUMED - 60 * MINUTE_MS)
    markets = get(f"{halted.urls['binance']}/api/v3/exchangeInfo")[2].decode()
    control.add_fault(
        endpoint="markets",
        act="body",
        body=markets.replace("TRADING", "BREAK"),
        content_type="application/json",
    )
    candles.run(key("binance", START), key("binance", START + days * DAY_MS))
    assert "delisted" in causes(candles, "BTC/USDT").values()

    control.clear_faults()
    control.set_clock(frozen_at=RESUMED + 60 * MINUTE_MS + 30_000)
    candles.run(key("binance", START), key("binance", START + 2 * DAY_MS))
    assert candles.candles().equals(candles.truth("binance", START, RESUMED + 60 * MINUTE_MS))
