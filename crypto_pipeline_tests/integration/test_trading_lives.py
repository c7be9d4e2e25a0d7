"""Symbols that are listed and delisted: minutes outside their life are named so, and no others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_of, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.pipelines import Pipeline, results

FIRST = date(2024, 3, 1)
START = day_start_ms(FIRST)
LISTED = START + 3 * DAY_MS + 12 * 60 * MINUTE_MS
DELISTED = START + 5 * DAY_MS + 18 * 60 * MINUTE_MS
END = START + 8 * DAY_MS
NOW = END + DAY_MS + 600_000
QUOTES = {"binance": "USDT", "coinbaseexchange": "USD"}
EMPTY = {"act": "body", "body": "list", "content_type": "application/json"}


@pytest.fixture(scope="module")
def exchanges() -> SimulatorHandle:
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
