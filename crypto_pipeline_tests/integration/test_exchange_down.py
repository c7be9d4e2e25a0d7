"""One exchange down, in every way exchanges are: named, contained, and filled afterwards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline, results

START = day_start_ms(date(2024, 3, 14))
NOW = START + DAY_MS + 3_600_000
TODAY = "2024-03-15"

#: The minute before is final by then, however fast runs are.
SETTLED_MS = 5_000

WAYS = {
    "refused": None,
    "503": {"act": "status", "status": 503},
    "429": {"act": "status", "status": 429, "headers": {"Retry-After": "0"}},
    "html": {"act": "body", "body": "html"},
    "reset in mid body": {"act": "drop_mid_body"},
    "blocked": {"act": "status", "status": 451},
}


@pytest.fixture
def simulator(simulate: Callable[[SimulatorConfig], SimulatorHandle]) -> SimulatorHandle:
    return simulate(
        SimulatorConfig.parse(
            {
                "clock": {"starts_at": NOW + SETTLED_MS},
                "exchanges": {
                    "binance": {"symbols": ["BTC/USDT", "ETH/USDT"], "port": 0},
                    "coinbaseexchange": {"symbols": ["BTC/USD"]},
                },
            },
            origin="the test",
        )
    )


@pytest.mark.parametrize("way", WAYS)
def test_its_run_fails_by_name_the_others_go_on_and_the_next_good_tick_fills_the_hole(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline], way: str
) -> None:
    """An exchange's outage is one failed run with a message to act on, and no hole afterwards."""
    candles = pipeline(simulator)
    assert candles.run(f"{TODAY}|binance").success
    forming = NOW // MINUTE_MS * MINUTE_MS

    later = NOW + 7 * MINUTE_MS + SETTLED_MS
    simulator.control.set_clock(starts_at=later)
    fault = WAYS[way]
    if fault is None:
        simulator.control.stop_listening("binance")
    else:
        simulator.control.add_fault(exchange="binance", endpoint="candles", **fault)
    result = candles.run(f"{TODAY}|binance", may_fail=True)
    assert not result.success
    message = str(result.failure_data_for_node("raw_ohlcv").error)
    assert "binance" in message
    assert "What to do" in message
    assert "BTC/USDT" in message
    assert candles.run(f"{TODAY}|coinbaseexchange").success
    assert len(candles.candles().query("exchange == 'binance'")) == 2 * 60

    simulator.control.clear_faults()
    simulator.control.start_listening("binance")
    result = candles.run(f"{TODAY}|binance")
    assert [key for key, check in results(result).items() if not check.passed] == []
    truth = candles.truth("binance", START + DAY_MS, forming + 7 * MINUTE_MS)
    stored = candles.candles().query("exchange == 'binance'").reset_index(drop=True)
    assert stored.equals(truth)


def test_one_symbol_down_does_not_stop_another_and_the_partition_is_not_green(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """What failed is in the metadata and a failing check, never only in a log line."""
    candles = pipeline(simulator)
    simulator.control.add_fault(exchange="binance", symbol="ETH/USDT", act="status", status=503)
    result = candles.run(f"{TODAY}|binance")
    assert result.success
    assert set(candles.candles()["symbol"]) == {"BTC/USDT"}
    check = results(result)["every_request_answered", f"{TODAY}|binance"]
    assert not check.passed
    (record,) = check.metadata["failures"].records
    assert record.data["symbol"] == "ETH/USDT"
    assert "503" in record.data["error"]
    raw = result.asset_materializations_for_node("raw_ohlcv")[0].metadata
    assert raw["failed requests"].value == 1

    simulator.control.clear_faults()
    result = candles.run(f"{TODAY}|binance")
    assert results(result)["every_request_answered", f"{TODAY}|binance"].passed
    assert set(candles.candles()["symbol"]) == {"BTC/USDT", "ETH/USDT"}


def test_a_range_keeps_what_came_before_the_exchange_went_down(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """A backfill that meets an outage half-way stores its first half and asks only for the rest."""
    candles = pipeline(simulator)
    simulator.control.add_fault(
        exchange="binance", endpoint="candles", act="body", body="html", probability=1, every=1,
        params={"startTime": str(START - 2 * DAY_MS + 1000 * MINUTE_MS)},
    )  # fmt: skip
    result = candles.run("2024-03-12|binance", "2024-03-14|binance")
    verdicts = results(result)
    assert not verdicts["every_request_answered", "2024-03-12|binance"].passed
    assert not verdicts["every_request_answered", "2024-03-13|binance"].passed
    assert verdicts["every_request_answered", "2024-03-14|binance"].passed
    simulator.control.reset()
    simulator.control.set_clock(starts_at=NOW + MINUTE_MS)
    result = candles.run("2024-03-12|binance", "2024-03-14|binance")
    assert [k for k, check in results(result).items() if not check.passed] == []
    assert len(simulator.control.arrivals(endpoint="candles")) == 2
    truth = candles.truth("binance", START - 2 * DAY_MS, START + DAY_MS)
    assert candles.candles().equals(truth)


def test_in_a_rectangle_the_other_exchanges_are_stored_and_the_one_down_is_not_green(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """Dagster may give one run a date of several exchanges: one down must not cost the others."""
    candles = pipeline(simulator)
    simulator.control.stop_listening("binance")
    result = candles.run("2024-03-14|binance", "2024-03-14|coinbaseexchange")
    verdicts = results(result)
    assert not verdicts["every_request_answered", "2024-03-14|binance"].passed
    assert verdicts["every_request_answered", "2024-03-14|coinbaseexchange"].passed
    assert candles.candles().equals(candles.truth("coinbaseexchange", START, START + DAY_MS))


def test_a_name_that_does_not_resolve_is_an_outage_like_any_other(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """DNS is down: the run says so, and what it missed is there once it is up."""
    nowhere = {"urls": {"api": {"public": "http://nowhere.invalid/api/v3"}}}
    away = pipeline(simulator, exchanges={"binance": {"ccxt": nowhere}})
    result = away.run(f"{TODAY}|binance", may_fail=True)
    assert not result.success
    assert "nowhere.invalid" in str(result.failure_data_for_node("raw_ohlcv").error)
    assert away.rows("SELECT cause FROM candle_gaps GROUP BY 1") == [("fetch_failed",)]
    back = Pipeline.over(
        simulator,
        home=away.settings.home,
        database_url=away.settings.require_database_url(),
    )
    assert back.run(f"{TODAY}|binance").success
    stored = back.candles()
    assert stored.equals(back.truth("binance", START + DAY_MS, NOW // MINUTE_MS * MINUTE_MS))


def test_an_unreadable_file_of_one_exchange_keeps_no_other_from_being_collected(
    simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]
) -> None:
    """Recording what failed reads the archive, too: its error must not take the other's place."""
    candles = pipeline(simulator)
    assert candles.run(f"{TODAY}|binance").success
    lake = candles.settings.home / "lake" / "raw"
    (damaged,) = lake.rglob("*.parquet")
    damaged.write_bytes(b"not Parquet")
    result = candles.run(f"{TODAY}|binance", f"{TODAY}|coinbaseexchange", may_fail=True)
    assert not result.success
    assert result.is_node_success("raw_ohlcv")
    assert [path for path in lake.rglob("*.parquet") if "coinbaseexchange" in str(path)]
