"""From a minute's close to its row in ``candles``, over many minutes of the real schedule.

``python -m crypto_pipeline_tests.benchmarks.minute --minutes 10``: a whole deployment
(`crypto-pipeline up`), three simulated exchanges, twenty symbols each, the minute schedule on. Says
how long rows took to become visible and what CPU an exchange's minute took, all of Dagster's processes
included, and fails if a closed minute of a series is missing or differs from what the exchange truly had.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import psutil
import yaml

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.deployment.conftest import Deployment, deployed

BASES = ["BTC", "ETH", "SOL", "XRP", "ADA"]  # kraken has another name for the first
QUOTES = {"binance": "USDT", "kraken": "USD", "coinbaseexchange": "USD"}
LAG_ALLOWED = 90.0

Seen = dict[tuple[str, str, int], float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--symbols", type=int, default=20, help="of each exchange")
    parser.add_argument("--exchanges", nargs="+", choices=QUOTES, default=list(QUOTES))
    parser.add_argument("--rate-limits", action="store_true", help="keep ccxt's rate limits on")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    bases = [*BASES, *(f"S{number:03}" for number in range(len(BASES), options.symbols))]
    symbols = {
        key: [f"{base}/{QUOTES[key]}" for base in bases[: options.symbols]]
        for key in options.exchanges
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        running_simulator(
            SimulatorConfig.for_pipeline({key: (key, names) for key, names in symbols.items()})
        ) as simulator,
    ):
        home = Path(folder) / "home"
        home.mkdir()
        config = home / "pipeline.yaml"
        config.write_text(_pipeline(simulator, symbols, rate_limits=options.rate_limits))
        with deployed(home, "--config", str(config)) as deployment:
            figures = _watch(deployment, simulator, symbols, options.minutes)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 0 if figures["missing"] == 0 and figures["different"] == 0 else 1


def _pipeline(
    simulator: SimulatorHandle, symbols: dict[str, list[str]], *, rate_limits: bool
) -> str:
    today = datetime.now(UTC).date()
    exchanges = {}
    for key, names in symbols.items():
        ccxt = simulator.ccxt_config(key)
        if rate_limits:
            del ccxt["enableRateLimit"]
        exchanges[key] = {"symbols": names, "start": today, "ccxt": ccxt}
    return yaml.safe_dump({"exchanges": exchanges})


def _watch(
    deployment: Deployment, simulator: SimulatorHandle, symbols: dict[str, list[str]], minutes: int
) -> dict[str, float]:
    """Note when each closed minute of each series is first seen; compare all with the truth."""
    _settle(deployment, symbols)
    first = int(time.time() * 1_000) // MINUTE_MS * MINUTE_MS + MINUTE_MS
    last = first + minutes * MINUTE_MS  # exclusive: the open time of the minute after
    wanted = {
        (key, symbol, minute)
        for key, names in symbols.items()
        for symbol in names
        for minute in range(first, last, MINUTE_MS)
        if len(simulator.truth.candles(key, symbol, "1m", minute, minute + MINUTE_MS))
    }
    seen: Seen = {}
    cpu: list[float] = []  # at the first minute's begin, and at the end of the last
    deadline = last / 1_000 + LAG_ALLOWED
    while time.time() < deadline and not (wanted <= seen.keys() and len(cpu) == 2):
        now = time.time()
        if now >= (first, last)[len(cpu) > 0] / 1_000 and len(cpu) < 2:
            cpu.append(_cpu_seconds(deployment))
        for exchange, symbol, minute in deployment.rows(
            "SELECT exchange, symbol, (extract(epoch FROM open_time) * 1000)::bigint FROM candles"
            f" WHERE timeframe = '1m' AND open_time >= to_timestamp({first / 1_000})"
        ):
            seen.setdefault((exchange, symbol, minute), now)
        time.sleep(0.25)
    delays = sorted(seen[key] - (key[2] + MINUTE_MS) / 1_000 for key in wanted & seen.keys())
    return {
        "series": sum(map(len, symbols.values())),
        "minutes": minutes,
        "candles expected": len(wanted),
        "missing": len(wanted - seen.keys()),
        "different": _different(deployment, simulator, symbols, first, last),
        "median seconds": round(statistics.median(delays), 2),
        "p95 seconds": round(delays[int(len(delays) * 0.95)], 2),
        "slowest seconds": round(delays[-1], 2),
        "CPU seconds an exchange and minute": round((cpu[1] - cpu[0]) / minutes / len(symbols), 2),
    }


def _cpu_seconds(deployment: Deployment) -> float:
    """All that the deployment's processes and those they waited for took so far, but for PostgreSQL's."""
    up = psutil.Process(deployment.process.pid)
    total = 0.0
    for process in (up, *up.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if not any(
                part.endswith("/postgres") or part.startswith("postgres:") for part in command
            ):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def _settle(deployment: Deployment, symbols: dict[str, list[str]]) -> None:
    """Wait until the first ticks have caught up with today."""
    deployment.wait(
        lambda: (
            len(
                deployment.rows(
                    "SELECT DISTINCT exchange, symbol FROM candles"
                    " WHERE open_time > now() - interval '3 minutes'"
                )
            )
            == sum(map(len, symbols.values()))
        ),
        seconds=300,
        what="every series has caught up",
    )


def _different(
    deployment: Deployment,
    simulator: SimulatorHandle,
    symbols: dict[str, list[str]],
    first: int,
    last: int,
) -> int:
    """Stored candles of the time that are not exactly the exchange's, or that it never had."""
    names = ["exchange", "symbol", "open_time", "open", "high", "low", "close", "volume"]
    stored = pd.DataFrame(
        deployment.rows(
            "SELECT exchange, symbol, (extract(epoch FROM open_time) * 1000)::bigint, open, high,"
            f" low, close, volume FROM candles WHERE open_time >= to_timestamp({first / 1_000})"
            f" AND open_time < to_timestamp({last / 1_000})"
        ),
        columns=names,
    )
    truth = pd.concat(
        [
            simulator.truth.candles(key, symbol, "1m", first, last).assign(
                exchange=key, symbol=symbol
            )
            for key, listed in symbols.items()
            for symbol in listed
        ]
    )[names]
    return len(stored) - len(stored.merge(truth, on=names))


if __name__ == "__main__":
    sys.exit(main())
