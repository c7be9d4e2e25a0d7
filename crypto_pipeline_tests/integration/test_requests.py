"""How many requests a backfill makes: the fewest, and never one twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml

from crypto_pipeline.core.habits import habits_of
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.settings import CONFIG, DATABASE_URL, HOME
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline

SYMBOLS = {
    "binance": ["BTC/USDT", "ETH/USDT", "SOL/USDT"],
    "coinbaseexchange": ["BTC/USD", "ETH/USD", "SOL/USD"],
}
FIRST, DAYS = date(2024, 3, 5), 10  # on coinbaseexchange its pages are full to the last

#: A twentieth of their requests is more than what is under way at once.
KILLED_DAYS = {"binance": 60, "coinbaseexchange": 30}


def fewest(exchange: str, symbols: int, days: int) -> int:
    return symbols * ceil(days * 1_440 / habits_of(exchange).page)


@pytest.mark.parametrize("exchange", SYMBOLS)
def test_a_cold_backfill_makes_the_fewest_requests_and_a_second_one_none(
    simulate: Callable[[SimulatorConfig], SimulatorHandle],
    pipeline: Callable[..., Pipeline],
    exchange: str,
) -> None:
    """N symbols × ceil(minutes / page), across midnights; nothing else, and nothing again."""
    now = day_start_ms(FIRST) + 20 * DAY_MS
    simulated = {"symbols": SYMBOLS[exchange], "quiet_rate": 0.1}
    config = {"clock": {"starts_at": now}, "exchanges": {exchange: simulated}}
    simulator = simulate(SimulatorConfig.parse(config, origin="the test"))
    candles = pipeline(simulator, start=FIRST, backfill={"partitions_per_run": DAYS})
    last = FIRST + timedelta(days=DAYS - 1)
    candles.run(f"{FIRST}|{exchange}", f"{last}|{exchange}")
    arrived = simulator.control.arrivals(endpoint="candles")
    assert len(arrived) == fewest(exchange, 3, DAYS)
    truth = candles.truth(exchange, day_start_ms(FIRST), day_start_ms(FIRST) + DAYS * DAY_MS)
    assert candles.candles().equals(truth)

    simulator.control.reset()
    simulator.control.set_clock(starts_at=now + 20_000)
    candles.run(f"{FIRST}|{exchange}", f"{last}|{exchange}")
    assert simulator.control.arrivals(endpoint="candles") == []


@pytest.mark.parametrize("exchange", SYMBOLS)
def test_a_killed_run_repeated_asks_for_at_most_a_twentieth_again(
    simulate: Callable[[SimulatorConfig], SimulatorHandle],
    new_database: Callable[[], str],
    tmp_path: Path,
    exchange: str,
) -> None:
    """SIGKILL half-way, no clean-up of any kind: what was written stays, and is not asked for."""
    days = KILLED_DAYS[exchange]
    symbols = SYMBOLS[exchange][:2]
    today = datetime.now(UTC).date()
    first, last = today - timedelta(days=days), today - timedelta(days=1)
    exchanges = {exchange: {"symbols": symbols, "latency": 0.02}}
    simulator = simulate(SimulatorConfig.parse({"exchanges": exchanges}, origin="the test"))
    section = {
        "symbols": symbols,
        "start": first,
        "ccxt": simulator.ccxt_config(exchange),
        "concurrency": 4,
    }
    document: dict[str, Any] = {
        "exchanges": {exchange: section},
        "backfill": {"partitions_per_run": days},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "dagster").mkdir()
    environment = {
        **os.environ,
        CONFIG: str(tmp_path / "pipeline.yaml"),
        HOME: str(tmp_path),
        DATABASE_URL: new_database(),
        "DAGSTER_HOME": str(tmp_path / "dagster"),
    }
    command = [sys.executable, "-m", "crypto_pipeline.orchestration.backfill_process", exchange]
    command += [first.isoformat(), last.isoformat()]
    expected = fewest(exchange, 2, days)

    def arrived() -> int:
        endpoints = simulator.control.counters().get(exchange, {}).get("endpoints", {})
        return int(endpoints.get("candles", 0))

    running = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert running.stdin is not None
    running.stdin.write(b"{}")
    running.stdin.close()
    deadline = time.monotonic() + 240
    while arrived() < expected // 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = arrived()
    assert expected // 2 <= before < expected

    finished = subprocess.run(
        command, env=environment, input="{}", capture_output=True, text=True, check=False
    )
    assert f"{days} of {days} partitions are complete" in finished.stderr
    again = arrived() - expected
    assert 0 <= again <= expected * 0.05
