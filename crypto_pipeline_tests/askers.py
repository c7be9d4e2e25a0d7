"""Processes that ask a simulated exchange under a shared budget, and what arrived of it there.

``python -m crypto_pipeline_tests.askers JSON`` is one of them: a run's wrapper, genuine ccxt and
budget, without Dagster around it. It says "ready", waits for a line, asks, and says what it did.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from typing import Any

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms
from crypto_pipeline.corridor.collect import Collection
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawZone
from crypto_pipeline.orchestration.resources import CcxtResource, DatabaseResource
from crypto_pipeline.simulator import SimulatorHandle

FIRST = date(2024, 3, 1)


def pipeline_config(
    simulator: SimulatorHandle, *, cost_ms: float, share: float = 1.0, **section: Any
) -> dict[str, Any]:
    """A pipeline file of the simulator's binance, its requests paced."""
    ccxt = simulator.ccxt_config("binance")
    del ccxt["enableRateLimit"]
    binance = {
        "symbols": list(simulator.config.exchanges["binance"].symbols),
        "start": FIRST.isoformat(),
        "ccxt": ccxt,
        "habits": {"cost_ms": cost_ms},
        "budget": {"share": share},
        **section,
    }
    return {"exchanges": {"binance": binance}}


class Askers:
    """Running processes. Each line one says is a JSON document, but for "ready"."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes = processes

    def go(self) -> int:
        """Let them ask; when, ns."""
        for process in self.processes:
            _stdin(process).write("go\n")
            _stdin(process).flush()
        return time.time_ns()

    def results(self) -> list[dict[str, Any]]:
        """What each says at its end."""
        said = [process.communicate()[0] for process in self.processes]
        assert all(process.returncode == 0 for process in self.processes), said
        return [json.loads(text) for text in said]


@contextmanager
def askers(config: dict[str, Any], url: str, jobs: Sequence[dict[str, Any]]) -> Iterator[Askers]:
    """A process for each job, ready to ask; killed at the end if still there."""
    with ExitStack() as stack:
        processes = []
        for job in jobs:
            command = [sys.executable, "-m", "crypto_pipeline_tests.askers"]
            command.append(json.dumps({"config": config, "url": url, **job}))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(subprocess.Popen(command, text=True, **pipes))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield Askers(processes)


def _stdin(process: subprocess.Popen[str]) -> Any:
    assert process.stdin is not None
    return process.stdin


def most_within(times_ns: Sequence[int], seconds: float) -> int:
    """The most of them in any stretch of this length, wherever it begins."""
    times = sorted(times_ns)
    length = int(seconds * 1e9)
    return max(bisect_left(times, time + length) - n for n, time in enumerate(times))


# --- one of the processes


def main() -> None:
    job = json.loads(sys.argv[1])
    config = PipelineConfig.model_validate(job["config"])
    ccxt = CcxtResource(config, lambda: job["url"])
    does = {"ask": _ask, "minutes": _minutes, "collect": _collect, "acquire": _acquire}
    result = asyncio.run(does[job["does"]](ccxt, job))
    sys.stdout.write(json.dumps(result) + "\n")


async def _told_to_go() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)


async def _ask(ccxt: CcxtResource, job: dict[str, Any]) -> dict[str, Any]:
    """A backfill's requests for ``seconds``, each of ``candles`` candles; the next as one is done."""
    symbol, candles = job["symbol"], job.get("candles", 10)
    failures: list[str] = []
    async with ccxt.open("binance", live=job.get("live", False)) as wrapper:
        wrapper._ccxt.timeout_on_exit = 0
        await wrapper.load_markets()
        await _told_to_go()
        cpu, end = time.process_time(), time.monotonic() + job["seconds"]
        start = day_start_ms(FIRST)

        async def work() -> None:
            while time.monotonic() < end:
                window = Interval(start, start + candles * MINUTE_MS)
                try:
                    await wrapper.fetch(Series(symbol, "1m"), window)
                except CryptoPipelineError as error:
                    failures.append(f"{type(error).__name__}: {error.message}")

        await asyncio.gather(*(work() for _ in range(wrapper.config.concurrency)))
        assert wrapper.pacer is not None
        counts = vars(wrapper.pacer.counts)
    return {"failures": failures, "cpu": time.process_time() - cpu, **counts}


async def _minutes(ccxt: CcxtResource, job: dict[str, Any]) -> dict[str, Any]:
    """Minute runs one after the other; seconds to the first answer and to the last, of each."""
    await _told_to_go()
    runs = []
    for _ in range(job["runs"]):
        runs.append(await _minute(ccxt, job["symbols"]))
        await asyncio.sleep(job.get("pause", 0))
    return {"first": [answered[0] for answered in runs], "whole": [run[-1] for run in runs]}


async def _minute(ccxt: CcxtResource, symbols: Sequence[str]) -> list[float]:
    """One request a symbol; seconds from the run's beginning to each answer."""
    began = time.monotonic()
    answered: list[float] = []
    queue = iter(symbols)
    window = Interval(day_start_ms(FIRST), day_start_ms(FIRST) + 5 * MINUTE_MS)
    async with ccxt.open("binance", live=True) as wrapper:
        wrapper._ccxt.timeout_on_exit = 0
        await wrapper.load_markets()

        async def work() -> None:
            for symbol in queue:
                await wrapper.fetch(Series(symbol, "1m"), window)
                answered.append(time.monotonic() - began)

        await asyncio.gather(*(work() for _ in range(wrapper.config.concurrency)))
    return answered


async def _acquire(ccxt: CcxtResource, job: dict[str, Any]) -> dict[str, Any]:
    """Places only, no requests, for ``seconds``; milliseconds each took."""
    wrapper = ccxt.open("binance", live=job["live"])
    assert wrapper.pacer is not None
    pacer, cost_ms, took = wrapper.pacer, wrapper.habits.cost_ms or 0, []
    async with wrapper:
        await pacer.acquire(cost_ms)
        await _told_to_go()
        cpu, end = time.process_time(), time.monotonic() + job["seconds"]

        async def work() -> None:
            while time.monotonic() < end:
                began = time.perf_counter()
                await pacer.acquire(cost_ms)
                took.append((time.perf_counter() - began) * 1_000)

        await asyncio.gather(*(work() for _ in range(job["tasks"])))
        cpu = time.process_time() - cpu
    return {"median_ms": statistics.median(took), "cpu_ms": cpu * 1_000 / len(took)}


async def _collect(ccxt: CcxtResource, job: dict[str, Any]) -> dict[str, Any]:
    """Backfill runs of ``days`` days each, one after the other, until ``seconds`` are over."""
    database = DatabaseResource(lambda: job["url"])
    await _told_to_go()
    end = time.monotonic() + job["seconds"]
    requests, cpu, day = 0, time.process_time(), FIRST + timedelta(days=job["from_day"])
    while time.monotonic() < end:
        days = [day + timedelta(days=n) for n in range(job["days"])]
        day = days[-1] + timedelta(days=1)
        async with ccxt.open("binance", live=False) as wrapper:
            wrapper._ccxt.timeout_on_exit = 0
            with database.raw_locks() as lock:
                zone = RawZone(LakeStorage(job["lake"]), lock)
                collection = Collection(exchange=wrapper, zone=zone, days=days, run_id="bench")
                await collection.run()
            requests += wrapper.counts.requests
    return {"requests": requests, "cpu": time.process_time() - cpu}


if __name__ == "__main__":
    main()
