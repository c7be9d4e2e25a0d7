"""What once failed, or came too early, and can be explained later: its partitions become green."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.orchestration.tags import AGAIN_TAG
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline, results

Simulate = Callable[[SimulatorConfig], SimulatorHandle]
MakePipeline = Callable[..., Pipeline]

FIRST = date(2024, 3, 1)
START = day_start_ms(FIRST)
DAYS = 7
NOW = START + (DAYS + 2) * DAY_MS
LISTED = START + 4 * DAY_MS + DAY_MS // 2
QUOTES = {"binance": "USDT", "coinbaseexchange": "USD"}
HOURS = 3_600_000


def simulated(exchange: str, symbols: Any, now: int = NOW, **options: Any) -> SimulatorConfig:
    exchanges = {exchange: {"symbols": symbols, "quiet_rate": 0, **options}}
    return SimulatorConfig.parse(
        {"clock": {"frozen_at": now}, "exchanges": exchanges}, origin="the test"
    )


def listed_later(exchange: str) -> SimulatorConfig:
    quote = QUOTES[exchange]
    return simulated(exchange, {f"BTC/{quote}": {}, f"NEW/{quote}": {"listed": LISTED}})


def key(exchange: str, day: int = 0) -> str:
    return f"{FIRST + timedelta(days=day)}|{exchange}"


def again(candles: Pipeline, exchange: str, *, hours: float = 8) -> dg.ExecuteInProcessResult:
    """All days once more, later, as `crypto-pipeline backfill` asks for what they lack."""
    candles.simulator.control.set_clock(frozen_at=candles.now + int(hours * HOURS))
    return candles.run(
        key(exchange), key(exchange, DAYS - 1), may_fail=True, tags={AGAIN_TAG: "true"}
    )


def refused(result: dg.ExecuteInProcessResult) -> list[tuple[str, str | None]]:
    return sorted(name for name, check in results(result).items() if not check.passed)


def incomplete(candles: Pipeline) -> list[tuple[Any, ...]]:
    return candles.rows("SELECT partition_date, missing FROM candle_partitions WHERE NOT complete")


def causes(candles: Pipeline, symbol: str) -> set[str]:
    found = candles.rows("SELECT DISTINCT cause FROM candle_gaps WHERE symbol = %s", symbol)
    return {cause for (cause,) in found}


def test_requests_that_failed_before_a_listing(simulate: Simulate, pipeline: MakePipeline) -> None:
    """Nobody asks again for what is known to lie before it: the check stayed red for ever."""
    simulator = simulate(listed_later("binance"))
    candles = pipeline(simulator, start=FIRST, exchanges={"binance": {"concurrency": 1}})
    simulator.control.add_fault(act="status", status=503, symbol="NEW/USDT")
    assert refused(again(candles, "binance")) != []
    simulator.control.clear_faults()
    again(candles, "binance")
    assert refused(again(candles, "binance")) == []
    assert incomplete(candles) == []
    assert causes(candles, "NEW/USDT") == {"not_listed_yet"}


def test_a_listing_that_one_partition_knows_of_holds_for_those_before_it(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """They were not asked for because of it, and did not know of it: incomplete for ever."""
    simulator = simulate(listed_later("binance"))
    candles = pipeline(simulator, start=FIRST)
    simulator.control.add_fault(act="status", status=503, symbol="NEW/USDT")
    again(candles, "binance")
    simulator.control.clear_faults()
    simulator.control.set_clock(frozen_at=candles.now + 8 * HOURS)
    candles.run(key("binance"))  # the first day alone meets the silence that is looked into
    assert refused(again(candles, "binance")) == []
    assert incomplete(candles) == []
    truth = candles.truth("binance", START, START + DAYS * DAY_MS)
    assert candles.candles().equals(truth)


@pytest.mark.parametrize("exchange", QUOTES)
def test_a_look_for_a_listing_that_met_one_bad_answer(
    simulate: Simulate, pipeline: MakePipeline, exchange: str
) -> None:
    """One empty page of daily candles, and the days before the listing stayed unexplained for ever."""
    simulator = simulate(listed_later(exchange))
    candles = pipeline(simulator, start=FIRST)
    simulator.control.add_fault(
        act="body", body="list", content_type="application/json", endpoint="candles",
        symbol=f"NEW/{QUOTES[exchange]}",
        params={"interval": "1d"} if exchange == "binance" else {"granularity": "86400"},
    )  # fmt: skip
    again(candles, exchange)
    assert incomplete(candles) != []
    simulator.control.clear_faults()
    simulator.control.set_clock(frozen_at=candles.now + 30 * HOURS)
    candles.heal()
    assert incomplete(candles) == []
    assert causes(candles, f"NEW/{QUOTES[exchange]}") == {"not_listed_yet"}


@pytest.mark.parametrize("exchange", QUOTES)
def test_a_look_for_a_whole_life_that_met_one_bad_answer(
    simulate: Simulate, pipeline: MakePipeline, exchange: str
) -> None:
    """Its end was found all the same, and nobody looked for its beginning any more."""
    gone = f"GONE/{QUOTES[exchange]}"
    ended = START + 3 * DAY_MS + 18 * HOURS
    life = {"listed": START + DAY_MS + DAY_MS // 2, "delisted": ended}
    simulator = simulate(simulated(exchange, {f"BTC/{QUOTES[exchange]}": {}, gone: life}))
    candles = pipeline(simulator, start=FIRST, exchanges={exchange: {"concurrency": 1}})
    simulator.control.add_fault(
        act="body", body="list", content_type="application/json", endpoint="candles", count=1,
        symbol=gone,
        params={"interval": "1d"} if exchange == "binance" else {"granularity": "86400"},
    )  # fmt: skip
    again(candles, exchange)
    for _ in range(3):
        again(candles, exchange, hours=30)
    assert incomplete(candles) == []
    assert causes(candles, gone) == {"delisted", "not_listed_yet"}


@pytest.mark.parametrize("exchange", QUOTES)
def test_a_symbol_that_was_delisted_before_the_first_day(
    simulate: Simulate, pipeline: MakePipeline, exchange: str
) -> None:
    """Its last candle was looked for after ``start`` only, so its silence was never explained."""
    old = f"OLD/{QUOTES[exchange]}"
    symbols = {f"BTC/{QUOTES[exchange]}": {}, old: {"delisted": START - 5 * DAY_MS - HOURS}}
    candles = pipeline(simulate(simulated(exchange, symbols)), start=FIRST)
    again(candles, exchange)
    assert refused(again(candles, exchange)) == []
    assert incomplete(candles) == []
    assert causes(candles, old) == {"delisted"}


def test_requests_that_failed_for_what_is_out_of_reach_now(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """The exchange serves its newest thousand candles: what is older is named so, and asked no more."""
    now = START + 20 * HOURS
    simulator = simulate(simulated("binance", ["BTC/USDT", "ETH/USDT"], now, history_limit=1_000))
    habits = {"binance": {"habits": {"history": 1_000, "trades": False}}}
    candles = pipeline(simulator, start=FIRST, exchanges=habits)
    simulator.control.add_fault(act="status", status=503, symbol="ETH/USDT", endpoint="candles")
    assert refused(candles.run(key("binance"), may_fail=True)) != []
    simulator.control.clear_faults()
    simulator.control.set_clock(frozen_at=now + 3 * DAY_MS)
    assert refused(candles.run(key("binance"), may_fail=True)) == []
    assert incomplete(candles) == []
    assert causes(candles, "ETH/USDT") == {"beyond_history"}


@pytest.mark.parametrize("limit", [60, 61])
def test_the_oldest_candle_that_is_served(
    simulate: Simulate, pipeline: MakePipeline, limit: int
) -> None:
    """It was demanded, came, and never counted as answered, as it may be out of reach by then."""
    now = START + 12 * HOURS + MINUTE_MS // 2
    simulator = simulate(simulated("binance", ["BTC/USDT"], now, history_limit=limit))
    habits = {"binance": {"habits": {"history": 60, "trades": False}}}
    candles = pipeline(simulator, start=FIRST, exchanges=habits)
    assert refused(candles.run(key("binance"), may_fail=True)) == []


def test_today_of_an_exchange_that_begins_tomorrow(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """Whoever materializes it by hand is told that nothing is late."""
    now = START + 12 * HOURS
    tomorrow = {"binance": {"start": FIRST + timedelta(days=1)}}
    simulator = simulate(
        SimulatorConfig.parse(
            {
                "clock": {"frozen_at": now},
                "exchanges": {
                    "binance": {"symbols": ["BTC/USDT"]},
                    "coinbaseexchange": {"symbols": ["BTC/USD"]},
                },
            },
            origin="the test",
        )
    )
    candles = pipeline(simulator, start=FIRST, exchanges=tomorrow)
    assert refused(candles.run(key("binance"), may_fail=True)) == []
