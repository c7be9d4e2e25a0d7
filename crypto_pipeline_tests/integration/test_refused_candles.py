"""Bad candles among good ones: each is refused by name, its neighbours are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date

import dagster as dg
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline, results

START = day_start_ms(date(2024, 3, 14))
SPOILED = START + 100 * MINUTE_MS

#: What the exchange does to one candle → the rule that must refuse it, and whether the candle of
#: that minute is lost by it (a row too many spoils nothing).
SPOILS = {
    "high_below_low": ("high_below_low", True),
    "negative_price": ("price_not_positive", True),
    "zero_price": ("price_not_positive", True),
    "nan": ("price_not_finite", True),
    "nan_text": ("price_not_finite", True),
    "null": ("price_not_finite", True),
    "text": ("price_not_finite", True),
    "null_row": ("open_time_invalid", True),
    "empty_row": ("open_time_invalid", True),
    "off_grid": ("off_grid", True),
    "duplicate": ("duplicate", False),
    "conflicting_duplicate": ("duplicate", False),
    "future": ("in_future", False),
    "outside": ("outside_partition", False),
}

DIALECTS = {"binance": "BTC/USDT", "kraken": "BTC/USD", "coinbaseexchange": "BTC/USD"}


@pytest.fixture(scope="module")
def config() -> SimulatorConfig:
    return SimulatorConfig.parse(
        {
            "clock": {"starts_at": START + DAY_MS + 3_605_000},  # the minute before is final
            "exchanges": {
                key: {"symbols": [symbol], "quiet_rate": 0, "history_limit": 0}
                for key, symbol in DIALECTS.items()
            },
        },
        origin="the test",
    )


@pytest.mark.parametrize("exchange", DIALECTS)
def test_every_kind_of_bad_candle_is_refused_by_name_and_its_neighbours_are_stored(
    simulate: Callable[[SimulatorConfig], SimulatorHandle],
    pipeline: Callable[..., Pipeline],
    config: SimulatorConfig,
    exchange: str,
) -> None:
    """One bad candle an hour, of every kind, in one day: none stored, all recorded, none else lost."""
    simulator = simulate(config)
    candles = pipeline(simulator, exchanges={"kraken": {"habits": {"history": None}}})
    spoiled = {spoil: START + (hour * 60 + 30) * MINUTE_MS for hour, spoil in enumerate(SPOILS)}
    for spoil, open_time in spoiled.items():
        simulator.control.add_fault(
            act="bad_candles", spoil=spoil, open_times=[open_time], exchange=exchange
        )
    result = candles.run(f"2024-03-14|{exchange}")

    rejected = dict(candles.rows("SELECT rule, count(*) FROM rejected_candles GROUP BY rule"))
    expected = Counter(rule for rule, _ in SPOILS.values())
    if exchange != "binance":  # these two are known to send candles that nobody asked for
        del expected["outside_partition"]
    assert rejected == expected

    lost = {spoiled[spoil] for spoil, (_, loses) in SPOILS.items() if loses}
    truth = candles.truth(exchange, START, START + DAY_MS)
    stored = candles.candles()
    kept = truth[~truth["open_time"].isin(lost)].reset_index(drop=True)
    assert stored.equals(kept)

    check = results(result)["ohlcv_constraints", f"2024-03-14|{exchange}"]
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.ERROR
    assert check.metadata["rejected"].value == expected.total()
    assert results(result)["stored_equals_validated", f"2024-03-14|{exchange}"].passed


def test_a_refused_candle_is_recorded_once_and_heals_with_the_next_good_answer(
    simulate: Callable[[SimulatorConfig], SimulatorHandle],
    pipeline: Callable[..., Pipeline],
    config: SimulatorConfig,
) -> None:
    """Within the reread of a tick a good reading takes the bad one's place; the record stays."""
    simulator = simulate(config)
    candles = pipeline(simulator)
    today, minute = "2024-03-15|binance", START + DAY_MS + 3_600_000 - MINUTE_MS
    fault = simulator.control.add_fault(
        act="bad_candles", spoil="negative_price", open_times=[minute], exchange="binance"
    )
    for _ in range(2):
        assert not results(candles.run(today))["ohlcv_constraints", today].passed
    refused = "SELECT open_time, rule, received, run_id FROM rejected_candles"
    (row,) = candles.rows(refused)
    assert row[1] == "price_not_positive"
    simulator.control.clear_faults(fault)
    check = results(candles.run(today))["ohlcv_constraints", today]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert check.metadata["candles lost"].value == 0
    assert candles.rows(refused) == [row]
    stored = candles.candles()
    assert stored.equals(candles.truth("binance", START + DAY_MS, minute + MINUTE_MS))
