"""Processes that ask a simulated exchange under a shared budget, and what arrived of it there.

``python -m crypto_pipeline_tests.askers JSON`` is one of them: a run's wrapper, genuine ccxt and
budget, without Dagster around it, or whole backfill runs. It says "ready", waits for a line, asks, and
says what it did.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
import types
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms
from crypto_pipeline.database.budget import SharedBudget
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.resources import CcxtResource
from crypto_pipeline.orchestration.tags import RANGE_END, RANGE_START
from crypto_pipeline.settings import CONFIG, DATABASE_URL, HOME, read_settings
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


def keep_to(times_ns: Sequence[int], rate: int) -> bool:
    """Whether there were at most so many a second over all, and nowhere a bunch of a quarter more.

    A busy machine is late with some, which then come together; two limiters side by side double both.
    """
    times = sorted(times_ns)
    over_all = rate * (times[-1] - times[0]) / 1e9 + 3
    return len(times) <= over_all and most_within(times, 1) <= rate * 5 // 4


# --- one of the processes


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["does"] == "backfill":
        result = _backfill(job)
    else:
        config = PipelineConfig.model_validate(job["config"])
        ccxt = CcxtResource(config, lambda: job["url"])
        does = {"ask": _ask, "minutes": _minutes, "acquire": _acquire}
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


def _backfill(job: dict[str, Any]) -> dict[str, Any]:
    """Backfill runs of ``days`` days each, one after the other, until ``seconds`` are over.

    Whole ones: all assets and checks, as Dagster's own processes execute them.
    """
    folder = Path(job["folder"])
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(json.dumps(job["config"]))
    settings = read_settings(
        {CONFIG: str(folder / "pipeline.yaml"), HOME: str(folder), DATABASE_URL: job["url"]}
    )
    definitions = build_defs(settings=settings)
    meter = _Meter()
    budget: Any = SharedBudget
    budget.acquire = meter.of(budget.acquire)
    asyncio.run(_told_to_go())
    end = time.monotonic() + job["seconds"]
    cpu, day = time.process_time(), FIRST + timedelta(days=job["from_day"])
    with dg.DagsterInstance.ephemeral() as instance:
        while time.monotonic() < end:
            last = day + timedelta(days=job["days"] - 1)
            definitions.resolve_job_def(OHLCV_JOB).execute_in_process(
                instance=instance,
                tags={RANGE_START: f"{day}|binance", RANGE_END: f"{last}|binance"},
            )
            day = last + timedelta(days=1)
    return {"cpu": time.process_time() - cpu, "acquiring": meter.seconds}


class _Meter:
    """The CPU that coroutines take, step by step: not what others take while they wait."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @types.coroutine
        def metered(*arguments: Any, **named: Any) -> Generator[Any, Any, Any]:
            coroutine = function(*arguments, **named)
            step, sent = coroutine.send, None
            while True:
                began = time.thread_time()
                try:
                    asked = step(sent)
                except StopIteration as end:
                    return end.value
                finally:
                    self.seconds += time.thread_time() - began
                try:
                    step, sent = coroutine.send, (yield asked)
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
                    step, sent = coroutine.throw, error

        return metered


if __name__ == "__main__":
    main()
