"""`crypto-pipeline up` under a supervisor that starts it again, as systemd would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from crypto_pipeline.cli.webserver import Webserver
from crypto_pipeline.database.connection import connect
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.local import DAGSTER_DATABASE, DATABASE, LocalPostgres
from crypto_pipeline.local.processes import free_port
from crypto_pipeline.settings import HOME, UP

STOP_SECONDS = 90


class Supervised:
    """A deployment in a home; whatever of it dies, nobody but `up` and this supervisor does anything."""

    def __init__(self, home: Path, config: Path) -> None:
        self.home = home
        self.port = free_port()
        self.webserver = Webserver(f"http://127.0.0.1:{self.port}")
        self.starts = 0
        self.output = home / "logs" / "up.out"
        self.output.parent.mkdir(parents=True, exist_ok=True)
        program = str(Path(sys.executable).with_name("crypto-pipeline"))
        self._command = [program, "up", "--config", str(config), "--port", str(self.port)]
        self._stopping = threading.Event()
        self._url: str | None = None
        self._dagster_url: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Self:
        self._supervisor.start()
        deadline = time.monotonic() + 180
        while "Dagster UI: " not in (self.output.read_text() if self.output.exists() else ""):
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.5)
        with LocalPostgres(self.home) as server:
            self._url, self._dagster_url = server.url(DATABASE), server.url(DAGSTER_DATABASE)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(STOP_SECONDS)
        self._supervisor.join(STOP_SECONDS)
        for process in self.family():
            process.kill()

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            with self.output.open("ab") as sink:
                self.process = subprocess.Popen(
                    self._command,
                    env={**os.environ, HOME: str(self.home)},
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    start_new_session=True,
                )
            self.starts += 1
            self.process.wait()
            self._stopping.wait(3)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        assert self._url is not None
        with connect(self._url, connect_timeout=5) as conn:
            return conn.execute(query).fetchall()

    def dagster_rows(self, query: str) -> list[tuple[Any, ...]]:
        assert self._dagster_url is not None
        with connect(self._dagster_url, connect_timeout=5) as conn:
            return conn.execute(query).fetchall()

    def family(self) -> list[psutil.Process]:
        """Every process of Dagster in this home, whoever its parent is."""
        return [
            p
            for p in psutil.process_iter()
            if _try(lambda p=p: p.environ().get(UP)) == str(self.home)
        ]

    def by_role(self) -> dict[str, list[psutil.Process]]:
        """Living processes by what they are."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.family():
            line = " ".join(_try(process.cmdline) or [])
            for words, role in ROLES.items():
                if words in line:
                    forked = role == "nursery" and _is_forked(process)
                    found.setdefault("run" if forked else role, []).append(process)
                    break
        if self.process is not None and self.process.poll() is None:
            with suppress(psutil.NoSuchProcess):  # killed just now
                found["up"] = [psutil.Process(self.process.pid)]
        return found

    def postmaster(self) -> psutil.Process | None:
        path = self.home / "postgres/data/postmaster.pid"
        try:
            return psutil.Process(int(path.read_text().split()[0]))
        except (OSError, ValueError, psutil.Error):
            return None

    def left_behind(self) -> list[str]:
        """What nobody would ever clean up: unfinished files, runs that never end, dead runs' locks."""
        left = [str(path) for path in self.home.glob("lake/**/.*.tmp")]
        try:
            left += [
                f"run {run} is {status} since {since}"
                for run, status, since in self.dagster_rows(
                    "SELECT run_id, status, update_timestamp FROM runs"
                    " WHERE status IN ('STARTING', 'STARTED', 'CANCELING', 'QUEUED')"
                    " AND create_timestamp < (now() AT TIME ZONE 'UTC') - interval '5 minutes'"
                )
            ]
        except CryptoPipelineError as error:
            left.append(str(error))
        return left


ROLES = {
    "orchestration.nursery": "nursery",
    "code-server start": "code server proxy",
    "api grpc": "code server",
    "dagster_webserver": "webserver",
    "dagster._daemon": "daemon",
    "dagster dev": "dagster dev",
}


def _is_forked(process: psutil.Process) -> bool:
    """A run is a nursery by its command; but it reads nothing from its input."""
    return bool(_try(Path(f"/proc/{process.pid}/fd/0").readlink) == Path(os.devnull))


def _try(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (psutil.Error, OSError):
        return None
