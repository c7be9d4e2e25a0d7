"""Candles from genuine ccxt over real sockets to the real database, in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date, timedelta
from pathlib import Path

import pandas as pd

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawZone
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import CANDLE, Pipeline, results

Simulate = Callable[[SimulatorConfig], SimulatorHandle]
MakePipeline = Callable[..., Pipeline]

DAY = date(2024, 3, 14)
START = day_start_ms(DAY)
NOON = START + DAY_MS + DAY_MS // 2 + 30_000  # the next day, 12:00:30


def exchanges(now: int, **per_exchange: object) -> SimulatorConfig:
    return SimulatorConfig.parse(
        {
            "clock": {"starts_at": now},
            "exchanges": {
                "binance": {"symbols": ["BTC/USDT", "ETH/USDT"], "quiet_rate": 0.1},
                "kraken": {"symbols": ["BTC/USD"], "quiet_rate": 0.1, "history_limit": 0},
                "coinbaseexchange": {"symbols": ["BTC/USD"], "quiet_rate": 0.1},
                **per_exchange,
            },
        },
        origin="the test",
    )


KRAKEN_SERVES_ALL = {"kraken": {"habits": {"history": None}}}


def test_a_rectangle_of_dates_and_exchanges_is_stored_as_it_truly_was(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """Dagster may hand a run any rectangle of partitions; every one must be served and complete."""
    candles = pipeline(simulate(exchanges(NOON)), exchanges=KRAKEN_SERVES_ALL)
    result = candles.run("2024-03-12|binance", "2024-03-14|coinbaseexchange")
    assert result.success
    first = day_start_ms(date(2024, 3, 12))
    expected = pd.concat(
        [candles.truth(key, first, first + 3 * DAY_MS) for key in sorted(KEYS)], ignore_index=True
    )
    pd.testing.assert_frame_equal(candles.candles(), expected, check_exact=True)
    verdicts = results(result)
    assert len(verdicts) == 6 * 9
    assert [key for key, check in verdicts.items() if not check.passed] == []


KEYS = ("binance", "kraken", "coinbaseexchange")


def test_a_second_run_asks_nothing_and_changes_no_row(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """What is settled is never asked for again, and an unchanged row gets no new version."""
    simulator = simulate(exchanges(NOON))
    candles = pipeline(simulator)
    candles.run("2024-03-13|binance", "2024-03-14|binance")
    versions = candles.rows("SELECT xmin, ctid, symbol, open_time FROM candles ORDER BY 3, 4")
    simulator.control.reset()
    assert candles.run("2024-03-13|binance", "2024-03-14|binance").success
    assert simulator.control.arrivals(endpoint="candles") == []
    assert versions == candles.rows(
        "SELECT xmin, ctid, symbol, open_time FROM candles ORDER BY 3, 4"
    )


def test_ticks_add_to_todays_partition_and_keep_the_forming_candle_apart(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """A tick asks for what is new plus the last three closed candles, and loses nothing."""
    simulator = simulate(exchanges(NOON))
    candles = pipeline(simulator)
    for minute in range(3):
        now = NOON + minute * MINUTE_MS
        simulator.control.reset()
        simulator.control.set_clock(starts_at=now)
        assert candles.run("2024-03-15|binance").success
        forming = now // MINUTE_MS * MINUTE_MS
        pd.testing.assert_frame_equal(
            candles.candles(), candles.truth("binance", START + DAY_MS, forming), check_exact=True
        )
        assert set(candles.rows(LIVE)) == {(forming,)}
    asked = simulator.control.arrivals(endpoint="candles")
    assert [a["params"]["startTime"] for a in asked] == [str(forming - 4 * MINUTE_MS)] * 2
    assert simulator.control.arrivals(endpoint="markets") == []  # the first tick's are kept


LIVE = "SELECT (extract(epoch FROM open_time) * 1000)::bigint FROM live_candles"


def test_a_late_correction_replaces_the_candle_and_both_stay_in_the_raw_zone(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """Exchanges revise a closed candle within the next minutes; nobody else keeps both versions."""
    simulator = simulate(exchanges(NOON))
    candles = pipeline(simulator)
    revised = NOON // MINUTE_MS * MINUTE_MS - MINUTE_MS
    fault = simulator.control.add_fault(
        act="bad_candles", spoil="revised", open_times=[revised], symbol="BTC/USDT"
    )
    assert candles.run("2024-03-15|binance").success
    before = candles.candles()
    simulator.control.clear_faults(fault)
    assert candles.run("2024-03-15|binance").success
    after = candles.candles()
    truth = candles.truth("binance", START + DAY_MS, revised + MINUTE_MS)
    assert (before.merge(truth, how="inner")).shape[0] == len(truth) - 1
    assert (after.merge(truth, how="inner")).shape[0] == len(truth)
    observations = (
        RawZone(LakeStorage(candles.settings.lake), _no_lock)
        .read("binance", date(2024, 3, 15))
        .observations
    )
    versions = observations[
        (observations["symbol"] == "BTC/USDT")
        & (observations["open_time"] == pd.Timestamp(revised, unit="ms", tz="UTC"))
    ]
    assert len(versions) == 2


def _no_lock(exchange: str, day: date) -> nullcontext[None]:
    return nullcontext()


def test_the_raw_zone_alone_rebuilds_everything_below_it(
    simulate: Simulate, pipeline: MakePipeline, tmp_path: Path
) -> None:
    """With the validated zone and the table gone, the same candles come back; nobody is asked."""
    simulator = simulate(exchanges(NOON))
    candles = pipeline(simulator)
    candles.run("2024-03-14|binance")
    before = candles.candles()
    shutil.rmtree(Path(candles.settings.lake) / "validated")
    candles.execute("TRUNCATE candles")
    simulator.control.reset()
    assert candles.run("2024-03-14|binance").success
    assert simulator.control.arrivals(endpoint="candles") == []
    pd.testing.assert_frame_equal(candles.candles(), before, check_exact=True)


def test_the_binanceus_files_come_back_value_by_value(
    simulate: Simulate, pipeline: MakePipeline, shared_data: Path
) -> None:
    """Real candles (21 days, three symbols, the USDC depeg) through socket, lake and COPY."""
    symbols = ["BTC/USDT", "BTC/USD", "BTC/USDC"]
    config = SimulatorConfig.for_pipeline(
        {"binanceus": ("binanceus", symbols)}, replay=shared_data / "candles"
    )
    candles = pipeline(simulate(config), start=date(2023, 3, 1))
    assert candles.run("2023-03-01|binanceus", "2023-03-21|binanceus").success
    files = pd.concat(
        [
            pd.read_parquet(
                shared_data / f"candles/binanceus-{symbol.replace('/', '_')}-1m-2023-03.parquet"
            ).assign(exchange="binanceus", symbol=symbol, timeframe="1m")
            for symbol in sorted(symbols)
        ],
        ignore_index=True,
    )
    assert len(files) == 90_720
    _assert_equal_to_files(candles, files)


def test_the_kraken_file_comes_back_with_its_omitted_minutes(
    simulate: Simulate, pipeline: MakePipeline, shared_data: Path
) -> None:
    """56,717 minutes with trades of a quarter; the other 72,883 must not be invented."""
    config = SimulatorConfig.for_pipeline(
        {"kraken": ("kraken", ["BTC/USDC"])}, replay=shared_data / "candles"
    )
    unlimited = config.exchanges["kraken"].model_copy(update={"history_limit": 0})
    config = config.model_copy(update={"exchanges": {"kraken": unlimited}})
    # Unlike its API, Kraken's files leave quiet minutes out.
    habits = {"kraken": {"habits": {"history": None, "quiet": "omitted"}}}
    candles = pipeline(simulate(config), start=date(2023, 1, 1), exchanges=habits)
    result = candles.run("2023-01-01|kraken", "2023-03-31|kraken")
    assert [key for key, check in results(result).items() if not check.passed] == []
    assert candles.rows("SELECT cause, sum(gap_end - gap_start) FROM candle_gaps GROUP BY 1") == [
        ("no_trades", timedelta(minutes=90 * 1_440 - 56_717))
    ]
    files = pd.read_parquet(shared_data / "candles/kraken-BTC_USDC-1m-2023Q1.parquet").assign(
        exchange="kraken", symbol="BTC/USDC", timeframe="1m"
    )
    assert len(files) == 56_717
    _assert_equal_to_files(candles, files)


def _assert_equal_to_files(candles: Pipeline, files: pd.DataFrame) -> None:
    files["open_time"] = (
        files["open_time"].dt.tz_convert(None).astype("datetime64[ms]").astype("int64")
    )
    pd.testing.assert_frame_equal(candles.candles(), files[CANDLE], check_exact=True)


def test_what_an_exchange_no_longer_serves_is_told_not_papered_over(
    simulate: Simulate, pipeline: MakePipeline
) -> None:
    """An exchange that serves its newest 720 candles and no trades: the older ones are accounted for."""
    simulator = simulate(exchanges(NOON + 3_600_000))
    candles = pipeline(simulator, exchanges={"kraken": {"habits": {"trades": False}}})
    result = candles.run("2024-03-15|kraken")
    check = results(result)["completeness", "2024-03-15|kraken"]
    assert check.metadata["missing: beyond_history"].value == 60
    assert check.passed
    first = START + DAY_MS + 60 * MINUTE_MS
    last = (NOON + 3_600_000) // MINUTE_MS * MINUTE_MS
    assert candles.candles().equals(candles.truth("kraken", first, last))
    check = results(candles.run("2024-03-13|kraken"))["completeness", "2024-03-13|kraken"]
    assert check.metadata["missing: beyond_history"].value == 1440
    assert check.passed
