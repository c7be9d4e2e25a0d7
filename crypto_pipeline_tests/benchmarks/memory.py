"""The most memory a run's process takes: a minute run, and a backfill run of a month.

``python -m crypto_pipeline_tests.benchmarks.memory``: processes of their own (Dagster's command, all
assets and checks) with genuine ccxt against a simulated binance; their peak is the kernel's VmHWM. Fails
beyond 400 MB for a minute run and 600 MB for a backfill run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import yaml

from crypto_pipeline.database.connection import connect
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, RANGE_END, RANGE_START
from crypto_pipeline.simulator import SimulatorConfig, running_simulator

MINUTE_MB, BACKFILL_MB = 400, 600
_LOOK_EVERY = 0.02


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if both keep to what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=50)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    symbols = [f"S{number:02}/USDT" for number in range(options.symbols)]
    today = datetime.now(UTC).date()
    first = today - timedelta(days=options.days)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_simulator(
            SimulatorConfig.for_pipeline({"binance": ("binance", symbols)})
        ) as simulator,
    ):
        home = Path(folder)
        section = {"symbols": symbols, "start": first, "ccxt": simulator.ccxt_config("binance")}
        config = home / "pipeline.yaml"
        config.write_text(yaml.safe_dump({"exchanges": {"binance": section}}), encoding="utf-8")
        environment = {
            **os.environ,
            "CRYPTO_PIPELINE_CONFIG": str(config),
            "CRYPTO_PIPELINE_HOME": str(home / "home"),
        }
        figures = _measured(environment, first, today)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    kept = figures["minute run MB"] < MINUTE_MB and figures["backfill run MB"] < BACKFILL_MB
    return 0 if kept and figures["candles"] else 1


def _measured(environment: Mapping[str, str], first: date, today: date) -> dict[str, float]:
    """The measurements, in a child that keeps the local database running for all of them."""
    command = [
        "crypto-pipeline", "exec", "--", sys.executable, "-m",
        "crypto_pipeline_tests.benchmarks.memory_runs", first.isoformat(), today.isoformat(),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def runs(first: str, today: str) -> dict[str, float]:
    """A backfill of the days before today; today's first run, which catches up; a minute run."""
    last = (date.fromisoformat(today) - timedelta(days=1)).isoformat()
    backfill_mb, seconds = _peak(first, last, {})
    with connect(os.environ["CRYPTO_PIPELINE_DATABASE_URL"]) as conn:
        (candles,) = conn.execute("SELECT count(*) FROM candles").fetchone() or (0,)
    day_mb, _ = _peak(today, today, {EXCHANGE_TAG: "binance"})
    minute_mb, minute_seconds = _peak(today, today, {EXCHANGE_TAG: "binance"})
    return {
        "candles": candles,
        "backfill run MB": backfill_mb,
        "backfill run seconds": seconds,
        "today's first run MB": day_mb,
        "minute run MB": minute_mb,
        "minute run seconds": minute_seconds,
    }


def _peak(first: str, last: str, tags: Mapping[str, str]) -> tuple[float, float]:
    """The peak of a process that runs all assets and checks of these days; how long it took."""
    every = {RANGE_START: f"{first}|binance", RANGE_END: f"{last}|binance", **tags}
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m",
               "crypto_pipeline.definitions", "-j", OHLCV_JOB, "--tags", json.dumps(every)]  # fmt: skip
    began, peak = time.monotonic(), 0.0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        while process.poll() is None:
            peak = max(peak, peak_mb(process.pid))
            time.sleep(_LOOK_EVERY)
        if process.returncode:
            log.seek(0)
            text = log.read().decode(errors="replace")[-2_000:]
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    return peak, round(time.monotonic() - began, 1)


def peak_mb(pid: int) -> float:
    """The most resident memory a living process ever had, MB; 0 for one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1_000
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
