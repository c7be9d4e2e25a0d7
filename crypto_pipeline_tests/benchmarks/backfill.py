"""A backfill as a user pays for it: whole processes, side by side with what they would write instead.

``python -m crypto_pipeline_tests.benchmarks.backfill``: candles of a simulated binance into a
TimescaleDB of their own, by one Dagster range run with all assets and checks (``ours``: as a deployment
launches it; ``command``: by `crypto-pipeline backfill`, from nothing), by the
practical-limit script and by the naive one (:mod:`.peers`), and by freqtrade where it is installed, each
several times, in turn. Wall seconds include the start of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import psycopg
import yaml
from psycopg import sql

from crypto_pipeline.cli.environment import project_file
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.local import DAGSTER_DATABASE, LocalPostgres, ServerInfo
from crypto_pipeline.settings import (
    CONFIG,
    DAGSTER_HOME,
    DAGSTER_URL,
    DATABASE_URL,
    EVENT_BATCH,
    HOME,
)
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.benchmarks import freqtrade, peers
from crypto_pipeline_tests.benchmarks.peak import Peak

PAGE = 1_000
#: A realistic exchange: what a call takes of its limit, the share of it that may be used by default,
#: and seconds until an answer begins.
COST_MS, SHARE, LATENCY = 20, 0.9, 0.06
#: What ccxt says a call for binance's markets takes of it; a run in a new database makes one.
MARKETS_MS = 200
GROWTH = (1, 4, 16)
EXCHANGE = "binance"


@dataclass(frozen=True)
class Spent:
    """What one process cost."""

    wall: float
    cpu: float
    database_cpu: float
    peak_mb: float
    requests: int


@dataclass
class Machine:
    """A simulated exchange and a database server, and what runs against them."""

    simulator: SimulatorHandle
    server: ServerInfo
    folder: Path
    symbols: list[str]
    made: int = 0
    log: list[str] = field(default_factory=list)

    def new_database(self) -> str:
        self.made += 1
        name = f"bench{self.made}"
        with connect(self.server.url("postgres")) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        upgrade(self.server.url(name))
        return self.server.url(name)

    def ours(
        self,
        days: int,
        *,
        warm: bool = False,
        ccxt: Mapping[str, Any] | None = None,
        **exchange: Any,
    ) -> tuple[Spent, str]:
        """One Dagster range run over ``days`` days that ended yesterday; and its database.

        ``warm``: launched as a deployment launches the runs of a backfill (:mod:`.launched`); else by
        the command line, which has to import everything.
        """
        url, home = self.new_database(), self.folder / f"home{self.made}"
        (home / "dagster").mkdir(parents=True)
        (home / "dagster" / "dagster.yaml").write_text(project_file("dagster.yaml").read_text())
        first, last = self.days(days)
        section = {
            "symbols": self.symbols,
            "start": first,
            "ccxt": {**self.simulator.ccxt_config(EXCHANGE), **(ccxt or {})},
            **exchange,
        }
        document = {"exchanges": {EXCHANGE: section}, "backfill": {"partitions_per_run": days}}
        (home / "pipeline.yaml").write_text(yaml.safe_dump(document))
        environment = {
            CONFIG: str(home / "pipeline.yaml"),
            HOME: str(home),
            DATABASE_URL: url,
            DAGSTER_URL: self.server.url(DAGSTER_DATABASE),
            DAGSTER_HOME: str(home / "dagster"),
            EVENT_BATCH: "100",
        }
        if warm:
            command = [sys.executable, "-m", "crypto_pipeline_tests.benchmarks.launched"]
        else:
            command = [str(Path(sys.executable).with_name("crypto-pipeline")), "backfill"]
        spent = self.spend(
            [*command, EXCHANGE, first.isoformat(), last.isoformat()], environment, warm=warm
        )
        with connect(url) as conn:
            rows = conn.execute("SELECT count(*) FROM candles").fetchone()
            gaps = conn.execute("SELECT count(*) FROM candle_partitions WHERE complete").fetchone()
        assert rows == (len(self.symbols) * days * 1_440,), rows
        assert gaps == (days,), gaps
        return spent, url

    def peer(self, which: str, days: int, *, ccxt: Mapping[str, Any] | None = None) -> Spent:
        """A script of :mod:`.peers` over the same days."""
        url = self.new_database()
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(peers.SCHEMA)
            conn.execute(peers.HYPERTABLE)
        first, last = self.days(days)
        job = {
            "ccxt": {**self.simulator.ccxt_config(EXCHANGE), **(ccxt or {})},
            "symbols": self.symbols,
            "start": day_start_ms(first),
            "end": day_start_ms(last) + DAY_MS,
            "concurrency": 8,
        }
        module = "crypto_pipeline_tests.benchmarks.peers"
        spent = self.spend([sys.executable, "-m", module, which, url, json.dumps(job)], {})
        with psycopg.connect(url) as conn:
            rows = conn.execute("SELECT count(*) FROM peer_candles").fetchone()
        assert rows == (len(self.symbols) * days * 1_440,), rows
        return spent

    def freqtrade(self, program: str, days: int) -> Spent:
        """``download-data`` over the same days, into files."""
        self.made += 1
        folder = self.folder / f"freqtrade{self.made}"
        first, last = self.days(days)
        ccxt = self.simulator.ccxt_config(EXCHANGE)
        spent = self.spend(
            freqtrade.command(
                program, folder=folder, ccxt=ccxt, symbols=self.symbols, first=first, last=last
            ),
            {},
        )
        rows = freqtrade.stored(folder)
        # at the end of a range that is over it leaves out one candle
        assert set(rows) == set(self.symbols), rows
        assert min(rows.values()) >= days * 1_440 - 1, rows
        return spent

    def days(self, days: int) -> tuple[date, date]:
        last = datetime.now(UTC).date() - timedelta(days=1)
        return last - timedelta(days=days - 1), last

    def fewest(self, days: int) -> int:
        return len(self.symbols) * ceil(days * 1_440 / PAGE)

    def spend(
        self, command: Sequence[str], environment: Mapping[str, str], *, warm: bool = False
    ) -> Spent:
        """Run it to its end; ``warm``: it says itself what the run took, as its last line.

        Raises:
            RuntimeError: it failed; with what it said.
        """
        self.simulator.control.reset()
        before = self._database_cpu()
        output = self.folder / "output.txt"
        with output.open("w") as sink:
            began = time.perf_counter()
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=sink, stderr=subprocess.STDOUT
            )
            peak = Peak(process.pid)
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} ended with {status}:\n{output.read_text()[-4_000:]}")
        if warm:
            told = json.loads(output.read_text().splitlines()[-1])
            return Spent(
                **told,
                database_cpu=self._database_cpu() - before,
                requests=len(self.simulator.control.arrivals(endpoint="candles")),
            )
        arrived = self.simulator.control.arrivals(endpoint="candles")
        return Spent(
            wall=wall,
            cpu=used.ru_utime + used.ru_stime,
            database_cpu=self._database_cpu() - before,
            peak_mb=peak.megabytes,
            requests=len(arrived),
        )

    def _database_cpu(self) -> float:
        with connect(self.server.url("postgres")) as conn:
            (pid,) = conn.execute("SELECT pg_backend_pid()").fetchone() or (0,)
            parent = psutil.Process(pid).parent()
        assert parent is not None
        total = 0.0
        for process in (parent, *parent.children()):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total


@contextmanager
def machine(symbols: int, **exchange: Any) -> Iterator[Machine]:
    """A simulator and a server, with Dagster's own tables made."""
    names = [f"S{number:03}/USDT" for number in range(symbols)]
    config = {"exchanges": {EXCHANGE: {"symbols": names, "quiet_rate": 0, **exchange}}}
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalPostgres(Path(folder) / "home") as server,
        running_simulator(SimulatorConfig.parse(config, origin="the benchmark")) as simulator,
    ):
        yield Machine(simulator, server, Path(folder), names)


def median(spent: Sequence[Spent]) -> dict[str, float]:
    """Of each figure."""
    return {
        name: round(statistics.median(getattr(one, name) for one in spent), 2)
        for name in ("wall", "cpu", "database_cpu", "peak_mb", "requests")
    }


def paced(running: Machine, days: int, rounds: int) -> dict[str, float]:
    """With a request budget and a network: how much of the time is what the budget alone dictates."""
    running.simulator.control.set_latency(EXCHANGE, LATENCY)
    spent = [
        running.ours(days, warm=True, ccxt={"enableRateLimit": True}, habits={"cost_ms": COST_MS})[
            0
        ]
        for _ in range(rounds)
    ]
    running.simulator.control.set_latency(EXCHANGE, 0)
    dictated = (running.fewest(days) * COST_MS + MARKETS_MS) / SHARE / 1_000
    figures = {**median(spent), "dictated": round(dictated, 2)}
    return {**figures, "of the dictated time": round(dictated / figures["wall"], 3)}


def growth(running: Machine, days: int, rounds: int) -> dict[str, dict[str, float]]:
    """One range run of 1, 4 and 16 times as many days: time a candle, and memory."""
    found = {}
    for times in GROWTH:
        spent = [running.ours(times * days, warm=True)[0] for _ in range(rounds)]
        figures = median(spent)
        candles = len(running.symbols) * times * days * 1_440
        found[f"{times}x"] = {**figures, "us a candle": round(figures["wall"] / candles * 1e6, 2)}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if ours is not slower than the practical limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="also the naive script, once")
    parser.add_argument(
        "--freqtrade", default=shutil.which("freqtrade"), help="freqtrade's program, to run it, too"
    )
    parser.add_argument("--paced", action="store_true", help="with a request budget, instead")
    parser.add_argument("--growth", action="store_true", help="1, 4, 16 times the days, instead")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    spent: dict[str, list[Spent]] = {
        name: [] for name in ("ours", "command", "practical", "freqtrade", "naive")
    }
    with machine(options.symbols) as running:
        running.ours(1)  # Dagster makes its tables, the simulator its candles
        if options.paced or options.growth:
            measured = paced if options.paced else growth
            told = json.dumps(measured(running, options.days, options.rounds), indent=2)
            sys.stdout.write(told + "\n")
            if options.json:
                options.json.write_text(told)
            return 0
        for number in range(options.rounds):
            spent["practical"].append(running.peer("practical", options.days))
            spent["ours"].append(running.ours(options.days, warm=True)[0])
            spent["command"].append(running.ours(options.days)[0])
            if options.freqtrade:
                spent["freqtrade"].append(running.freqtrade(options.freqtrade, options.days))
            if options.naive and not number:
                spent["naive"].append(running.peer("naive", options.days))
            sys.stdout.write(
                f"round {number + 1}: "
                + ", ".join(f"{name} {each[-1].wall:.2f} s" for name, each in spent.items() if each)
                + "\n"
            )
            sys.stdout.flush()
        fewest = running.fewest(options.days)
    candles = options.symbols * options.days * 1_440
    figures = {name: median(each) for name, each in spent.items() if each}
    for name, each in figures.items():
        sys.stdout.write(
            f"{name:10} {each['wall']:6.2f} s wall, {each['cpu']:6.2f} s CPU, {each['database_cpu']:5.2f} s"
            f" in the database, {each['peak_mb']:4.0f} MB, {candles / each['wall']:9,.0f} candles/s,"
            f" {each['requests']:.0f} requests (at least {fewest})\n"
        )
    ratio = figures["ours"]["wall"] / figures["practical"]["wall"]
    sys.stdout.write(f"ours takes {ratio:.2f} of the practical limit's time")
    if options.freqtrade:
        sys.stdout.write(
            f", {figures['ours']['wall'] / figures['freqtrade']['wall']:.2f} of freqtrade's"
        )
    sys.stdout.write("\n")
    if options.json:
        options.json.write_text(json.dumps({**figures, "ratio": ratio}, indent=2))
    return 0 if ratio <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
