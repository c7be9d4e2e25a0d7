"""A backfill that somebody ends: all of it, in order, and the exit status says by what."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import yaml

from crypto_pipeline.settings import DAGSTER_URL, DATABASE_URL
from crypto_pipeline.simulator import SimulatorHandle
from crypto_pipeline_tests.cli.conftest import Cli, write_pipeline

UNDER_WAY = "SELECT count(*) FROM runs WHERE status IN ('NOT_STARTED', 'STARTING', 'STARTED')"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_backfill_and_not_just_its_run(
    tmp_path: Path,
    simulator: SimulatorHandle,
    new_database: Callable[[], str],
    dagster_url: str,
    number: signal.Signals,
) -> None:
    """Dagster makes a failed step of it: the next ranges were run, and then that one again."""
    write_pipeline(tmp_path, simulator)
    path = tmp_path / "pipeline.yaml"
    document = yaml.safe_load(path.read_text()) | {"backfill": {"partitions_per_run": 1}}
    path.write_text(yaml.safe_dump(document))
    used = Cli(tmp_path, {DATABASE_URL: new_database(), DAGSTER_URL: dagster_url})
    simulator.control.set_latency("binance", 1.5)
    arguments = ("backfill", "binance", "2024-03-12", "2024-03-14")
    with used.start(*arguments, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not simulator.control.arrivals(endpoint="candles"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert said.count(" of 3 days) …") == 1
    assert said.rstrip().endswith("the same command goes on from there.")
    with psycopg.connect(dagster_url) as conn:
        assert conn.execute(UNDER_WAY).fetchone() == (0,)
    simulator.control.reset()
    assert "3 of 3 partitions are complete." in used(*arguments).stderr
