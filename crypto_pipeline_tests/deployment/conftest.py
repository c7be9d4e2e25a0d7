"""A whole deployment: `crypto-pipeline up`, with its database, webserver, daemon and code server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from crypto_pipeline.cli.webserver import Webserver
from crypto_pipeline.database.connection import connect
from crypto_pipeline.local import DATABASE, LocalPostgres
from crypto_pipeline.local.processes import free_port
from crypto_pipeline.settings import HOME

UP_SECONDS = 120
STOP_SECONDS = 60


@dataclass(frozen=True)
class Deployment:
    """A running one."""

    home: Path
    process: subprocess.Popen[str]
    webserver: Webserver
    database_url: str
    output: Path

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with connect(self.database_url) as conn:
            return conn.execute(query).fetchall()

    def said(self) -> str:
        return self.output.read_text()

    def wait(self, done: Callable[[], bool], *, seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            log = self.home / "logs" / "dagster.log"
            assert self.process.poll() is None, f"it ended: {self.said()}"
            assert time.monotonic() < deadline, (
                f"not after {seconds:.0f} s: {what}\n{self.said()}\n{log.read_text()[-5_000:]}"
            )
            time.sleep(0.5)


@contextmanager
def deployed(
    home: Path, *arguments: str, environment: Mapping[str, str] = {}
) -> Iterator[Deployment]:
    """`crypto-pipeline up` as a user starts it, stopped with Ctrl-C; nothing may be left of it."""
    port = free_port()
    output = home.parent / f"{home.name}.out"
    command = [str(Path(sys.executable).with_name("crypto-pipeline")), "up", "--port", str(port)]
    with output.open("w") as sink:
        process = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, **environment, HOME: str(home)},
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    family: list[psutil.Process] = []
    try:
        webserver = Webserver(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + UP_SECONDS
        while "Dagster UI: " not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)
        with LocalPostgres(home) as server:
            yield Deployment(home, process, webserver, server.url(DATABASE), output)
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, output.read_text()
    _, left = psutil.wait_procs(family, timeout=10)
    assert [item.cmdline() for item in left] == []
    assert not re.search("Traceback", output.read_text())


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment") / "home"
