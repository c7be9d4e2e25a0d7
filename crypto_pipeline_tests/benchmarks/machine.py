"""What backfills are measured on: a simulated exchange, a database server, and processes with their cost."""

from __future__ import annotations

import asyncio
import json
import os
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

import aiohttp
import psutil
import psycopg
import yaml
from psycopg import sql

from crypto_pipeline.cli.environment import project_file
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
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

    def ceiling(self, days: int) -> float:
        """Candles a second that the exchange itself serves to who reads no byte of them."""
        first, last = self.days(days)
        start, end = day_start_ms(first), day_start_ms(last) + DAY_MS
        url = f"{self.simulator.urls[EXCHANGE]}/api/v3/klines"
        asked = [
            {
                "symbol": symbol.replace("/", ""),
                "interval": "1m",
                "limit": PAGE,
                "startTime": since,
                "endTime": min(since + (PAGE - 1) * MINUTE_MS, end - MINUTE_MS),
            }
            for symbol in self.symbols
            for since in range(start, end, PAGE * MINUTE_MS)
        ]

        async def served() -> float:
            limit = asyncio.Semaphore(8)
            async with aiohttp.ClientSession() as session:

                async def ask(params: dict[str, Any]) -> None:
                    async with limit, session.get(url, params=params) as response:
                        assert response.status == 200
                        await response.read()

                began = time.perf_counter()
                await asyncio.gather(*map(ask, asked))
                return time.perf_counter() - began

        return len(self.symbols) * days * 1_440 / asyncio.run(served())

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
