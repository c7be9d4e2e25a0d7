"""A clock that jumps by hours, the exchange's or ours, and jumps back: no candle is lost or wrong."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.integration.faults import healed, nothing_half_is_visible
from crypto_pipeline_tests.pipelines import Pipeline

TODAY = date(2024, 3, 15)
NOW = day_start_ms(TODAY) + 6 * 3_600_000 + 20_000


@pytest.mark.parametrize("hours", [2, -2])
@pytest.mark.parametrize("whose", ["the exchange's", "ours"])
def test_a_clock_that_jumps_and_jumps_back_costs_nothing(
    simulate: Callable[[SimulatorConfig], SimulatorHandle],
    pipeline: Callable[..., Pipeline],
    whose: str,
    hours: int,
) -> None:
    """NTP that steps, a machine that wakes up, an exchange's bad server."""
    config = {
        "clock": {"frozen_at": NOW},
        "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"]}},
    }
    simulator = simulate(SimulatorConfig.parse(config, origin="the test"))
    candles = pipeline(simulator, start=TODAY)
    jump = hours * 3_600_000
    for minute in range(4):
        away = minute in (1, 2)
        # The simulator's shared clock is ours: where ours jumps, the exchange's stays by an offset.
        ours = NOW + minute * MINUTE_MS + (jump if away and whose == "ours" else 0)
        ahead = 0 if not away else jump if whose == "the exchange's" else -jump
        simulator.control.set_clock(frozen_at=ours)
        simulator.control.set_clock_offset("binance", ahead / 1_000)
        candles.tick("binance", f"{TODAY}")
        if not away:
            nothing_half_is_visible(candles)
    simulator.control.set_clock(frozen_at=NOW + 3 * 3_600_000)
    candles.tick("binance", f"{TODAY}")
    healed(candles, "binance", TODAY, TODAY)
