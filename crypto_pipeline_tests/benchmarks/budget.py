"""The shared request budget, measured at the exchange: rate, shares, pauses, and what it costs.

``python -m crypto_pipeline_tests.benchmarks.budget``: processes of their own with genuine ccxt and the
pipeline's budget in a PostgreSQL of their own, against a simulated exchange that logs arrivals. Says
whether each promise held, and fails if one did not.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.local import LocalPostgres, ServerInfo
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.askers import askers, most_within, pipeline_config

SYMBOLS = [f"S{number:02}/USDT" for number in range(20)]
SECOND = 1_000_000_000
COST_MS = 50  # 20 requests a second
MINUTE_RUNS = 100
RETRY_AFTER = 5
#: A request that is on its way when another one is refused, and that refusal on its way back.
UNDER_WAY = SECOND // 4


@dataclass
class Line:
    """One measured promise."""

    what: str
    figures: dict[str, Any]
    held: bool


@dataclass
class Bench:
    """A simulated exchange, and a database for each measurement."""

    simulator: SimulatorHandle
    server: ServerInfo
    lake: Path
    databases: int = 0

    def url(self) -> str:
        self.databases += 1
        name = f"budget{self.databases}"
        with connect(self.server.url("postgres")) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        upgrade(self.server.url(name))
        self.simulator.control.reset()
        return self.server.url(name)

    def log(self) -> list[dict[str, Any]]:
        return self.simulator.control.arrivals(endpoint="candles")

    def shares(self, processes: int, seconds: float) -> Line:
        """1: one budget, however many processes use it."""
        config = pipeline_config(self.simulator, cost_ms=COST_MS)
        jobs = [backfill(symbol, seconds + 2) for symbol in SYMBOLS[:processes]]
        with askers(config, self.url(), jobs) as running:
            began = running.go() + SECOND
            results = running.results()
        log = self.log()
        until = began + int(seconds * SECOND)
        asked = Counter(one["symbol"] for one in log if began <= one["time_ns"] < until)
        mean = asked.total() / seconds
        least = min(asked[symbol] for symbol in SYMBOLS[:processes]) * processes / asked.total()
        most = most_within([one["time_ns"] for one in log], 1)
        figures = {"mean/s": round(mean, 2), "most in 1 s": most, "least share": round(least, 2)}
        failures = sum(len(result["failures"]) for result in results)
        held = mean >= 0.95 * 1_000 / COST_MS and most <= 21 and least >= 0.5 and not failures
        return Line(f"1. {processes} processes, 20/s, {seconds:.0f} s", figures, held)

    def minutes(self) -> Line:
        """2: minute runs get through while four processes backfill."""
        config = pipeline_config(self.simulator, cost_ms=COST_MS)
        jobs = [backfill(symbol, 3_600) for symbol in SYMBOLS[:4]]
        minutes = {"does": "minutes", "runs": MINUTE_RUNS, "symbols": SYMBOLS, "pause": 0.2}
        with askers(config, self.url(), [*jobs, minutes]) as running:
            running.go()
            live = json.loads(running.processes[-1].communicate()[0])
            busy = len(self.log())
        figures = {
            "slowest first s": round(max(live["first"]), 2),
            "slowest whole run s": round(max(live["whole"]), 2),
            "by its own requests s": round(len(SYMBOLS) * COST_MS / 960, 2),
            "arrivals of backfills": busy - MINUTE_RUNS * len(SYMBOLS),
            "most in 1 s": most_within([one["time_ns"] for one in self.log()], 1),
        }
        in_time = sum(first <= 2 for first in live["first"])
        return Line(
            f"2. {in_time} of {MINUTE_RUNS} minute runs within 2 s, 4 backfills",
            figures,
            in_time == MINUTE_RUNS,
        )

    def refusal(self, number: int) -> Line:
        """3: one process is told 429 with Retry-After."""
        config = pipeline_config(self.simulator, cost_ms=COST_MS)
        jobs = [backfill(symbol, RETRY_AFTER + 9) for symbol in SYMBOLS[:4]]
        with askers(config, self.url(), jobs) as running:
            running.go()
            time.sleep(2)
            self.simulator.control.add_fault(
                act="status",
                status=429,
                headers={"Retry-After": str(RETRY_AFTER)},
                symbol=SYMBOLS[0],
                count=1,
            )
            running.results()
        log = self.log()
        (refused,) = [one["time_ns"] for one in log if one["status"] == 429]
        after = [(one["time_ns"] - refused) / SECOND for one in log if one["time_ns"] > refused]
        under_way = [round(at, 3) for at in after if at < UNDER_WAY / SECOND]
        silent = [at for at in after if UNDER_WAY / SECOND <= at < RETRY_AFTER]
        resumed = sum(RETRY_AFTER + 1 <= at < RETRY_AFTER + 4 for at in after) / 3
        figures = {
            "under way, s after": under_way,
            "in the pause": len(silent),
            "first after s": round(min(at for at in after if at >= RETRY_AFTER), 2),
            "then mean/s": round(resumed, 2),
        }
        held = not silent and resumed >= 0.95 * 1_000 / COST_MS
        return Line(f"3. 429, Retry-After {RETRY_AFTER}, 4 processes ({number})", figures, held)

    def backfill(self, processes: int, seconds: float) -> tuple[Line, float, float]:
        """5: whole backfill runs at binance's cost; CPU ms a request and a place of it, too."""
        config = pipeline_config(self.simulator, cost_ms=20, share=0.9)
        config["exchanges"]["binance"]["start"] = "2018-01-01"
        url = self.url()
        self.simulator.control.set_latency("binance", 0.05)
        lake = str(self.lake / url.rsplit("/", 1)[1])
        jobs = [
            {"does": "backfill", "days": 10, "folder": f"{lake}-{number}",
             "from_day": 700 * number - 2_000, "seconds": seconds + 2}
            for number in range(processes)
        ]  # fmt: skip
        with askers(config, url, jobs) as running:
            began = running.go() + SECOND
            results = running.results()
        times = [one["time_ns"] for one in self.log()]
        until = began + int(seconds * SECOND)
        busy = sum(began <= at < until for at in times) / seconds / 45
        cpu_ms, place_ms = (
            sum(one[name] for one in results) * 1_000 / len(times) for name in ("cpu", "acquiring")
        )
        figures = {
            "busy": f"{busy:.1%}",
            "most in 1 s (limit 50)": most_within(times, 1),
            "requests": len(times),
            "cpu ms/request": round(cpu_ms, 2),
        }
        what = f"5. backfill, {processes} runs, 20 ms, share 0.9, {seconds:.0f} s"
        return Line(what, figures, busy >= 0.95), cpu_ms, place_ms

    def cost(self, request_ms: float, place_ms: float) -> Line:
        """6: what a place costs, within a backfill and alone.

        A process that only takes places wakes a sleeping core for each, which is most of its CPU.
        """
        job = {"does": "acquire", "live": True, "tasks": 1, "seconds": 5}
        free = pipeline_config(self.simulator, cost_ms=0.001)
        with askers(free, self.url(), [job]) as running:
            running.go()
            (alone,) = running.results()
        rate = pipeline_config(self.simulator, cost_ms=20, share=0.9)
        jobs = [{**job, "live": False, "tasks": 8, "seconds": 15} for _ in range(2)]
        with askers(rate, self.url(), jobs) as running:
            running.go()
            paced = running.results()
        cpu_ms = sum(one["cpu_ms"] for one in paced) / len(paced)
        part = place_ms / request_ms
        figures = {
            "median ms": round(alone["median_ms"], 3),
            "cpu ms alone": round(alone["cpu_ms"], 3),
            "cpu ms with nothing else at 45/s, 2 runs": round(cpu_ms, 3),
            "cpu ms within a backfill": round(place_ms, 3),
            "of its CPU": f"{part:.1%}",
        }
        return Line("6. cost of a place", figures, alone["median_ms"] < 1 and part < 0.03)


def backfill(symbol: str, seconds: float) -> dict[str, Any]:
    """A process that asks for one symbol's candles all the time."""
    return {"does": "ask", "symbol": symbol, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each measured rate")
    parser.add_argument("--job-seconds", type=float, help="of the backfill (default: as --seconds)")
    parser.add_argument("--only", help="numbers of the lines to measure, such as 35")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    exchange = {"symbols": SYMBOLS}
    lines = []
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalPostgres(Path(folder) / "home") as server,
        running_simulator(
            SimulatorConfig.parse({"exchanges": {"binance": exchange}}, origin="the benchmark")
        ) as simulator,
    ):
        bench = Bench(simulator, server, Path(folder) / "lake")
        for line in _measured(bench, options):
            figures = ", ".join(f"{name} {figure}" for name, figure in line.figures.items())
            sys.stdout.write(f"{'held' if line.held else 'NOT '}  {line.what}: {figures}\n")
            sys.stdout.flush()
            lines.append(line)
    if options.json:
        options.json.write_text(json.dumps([vars(line) for line in lines], indent=2))
    return 0 if all(line.held for line in lines) else 1


def _measured(bench: Bench, options: argparse.Namespace) -> Iterator[Line]:
    wanted = options.only or "12356"
    if "1" in wanted:
        yield from (bench.shares(number, options.seconds) for number in (1, 2, 4, 8))
    if "2" in wanted:
        yield bench.minutes()
    if "3" in wanted:
        yield from (bench.refusal(number) for number in (1, 2, 3))
    if "5" in wanted or "6" in wanted:
        line, request_ms, place_ms = bench.backfill(3, options.job_seconds or options.seconds)
        yield line
        if "6" in wanted:
            yield bench.cost(request_ms, place_ms)


if __name__ == "__main__":
    sys.exit(main())
