"""Streams one long span of Kraken's trades in a process of its own, and says what that took.

``python -m crypto_pipeline_tests.corridor.streaming '<JSON>'``: ``ccxt`` (the simulator's settings),
``symbol``, ``start``, ``end`` (ms). Prints a JSON object; ``peak_mb`` is all the memory the process
ever held, its libraries included.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.corridor.trade_history import trade_candles
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper


def peak_mb() -> float:
    """Linux counts what the parent held before it started this process into ``ru_maxrss``."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [one for one in status.read_text().splitlines() if one.startswith("VmHWM:")]
        return int(line.split()[1]) / 1_024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_048_576  # bytes on macOS


async def stream(task: dict[str, Any]) -> dict[str, float]:
    config = ExchangeConfig.model_validate(
        {
            "ccxt_id": "kraken",
            "symbols": [task["symbol"]],
            "start": date(2020, 1, 1),
            "ccxt": task["ccxt"],
        }
    )
    totals = {"trades": 0.0, "requests": 0.0, "candles": 0.0, "volume": 0.0, "close": 0.0}
    began = time.perf_counter()
    async with ExchangeWrapper(key="kraken", config=config) as exchange:
        exchange._ccxt.timeout_on_exit = 0
        await exchange.load_markets()
        span = Interval(task["start"], task["end"])
        async for batch in trade_candles(exchange, task["symbol"], {"1m": span}, run_id="run"):
            totals["trades"] += batch.trades
            totals["requests"] += batch.requests
            totals["candles"] += len(batch.observations)
            totals["volume"] += float(batch.observations["volume"].sum())
            totals["close"] += float(batch.observations["close"].sum())
    totals["seconds"] = time.perf_counter() - began
    totals["peak_mb"] = peak_mb()
    return totals


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(stream(json.loads(sys.argv[1])))))
