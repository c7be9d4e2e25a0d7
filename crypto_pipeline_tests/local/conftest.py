"""What the tests of the local services share: the extension, homes, other processes' points of view."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.local.timescaledb import (
    TimescaleFiles,
    TimescaleUnavailable,
    find_timescaledb,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crypto_pipeline.local import ServerInfo

CACHE = Path.home() / ".cache" / "crypto_pipeline"


@pytest.fixture(scope="session")
def timescaledb() -> TimescaleFiles:
    """The extension, or a skip that says why there is none."""
    try:
        return find_timescaledb(CACHE)
    except TimescaleUnavailable as reason:
        pytest.skip(f"no TimescaleDB here: {reason}")


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Path]:
    """A home that does not exist yet; the test fails if it leaves a server behind."""
    home = tmp_path / "home"
    yield home
    conf = f"config_file={home.resolve()}/postgres/server.conf"
    left = [process for process in psutil.process_iter() if conf in _cmdline(process)]
    for process in left:
        process.kill()
    shutil.rmtree(home, ignore_errors=True)  # pytest would keep 40 MB of each test
    assert not left


@pytest.fixture(scope="session")
def plain_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a stopped plain PostgreSQL: initdb is most of a first start's time."""
    home = tmp_path_factory.mktemp("template") / "home"
    with LocalPostgres(home, find=no_timescaledb):
        pass
    return home


@pytest.fixture
def home(fresh_home: Path, plain_template: Path) -> Path:
    """A home that was used before, without TimescaleDB so far."""
    subprocess.run(["cp", "-a", plain_template, fresh_home], check=True)
    return fresh_home


def no_timescaledb(_: Path) -> TimescaleFiles:
    """For the many tests that need no extension."""
    msg = "there is no apt-get"
    raise TimescaleUnavailable(msg)


def server_pid(home: Path) -> int:
    """Process id of a home's server."""
    return int((home / "postgres/data/postmaster.pid").read_text().split()[0])


def lives(pid: int) -> bool:
    """Whether a process runs; a zombie whose parent does not care has ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def query() -> Callable[..., list[tuple[object, ...]]]:
    """Run one statement on a server, committed."""

    def run(info: ServerInfo, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(info.url("crypto_pipeline"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def user_process() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Another process that acquires a home's server, says its pid, and then does something."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path, then: str) -> subprocess.Popen[str]:
        script = f"""
            import sys, time
            from pathlib import Path
            from crypto_pipeline.local import LocalPostgres
            from crypto_pipeline_tests.local.conftest import no_timescaledb
            postgres = LocalPostgres(Path({str(home)!r}), find=no_timescaledb)
            info = postgres.acquire()
            print(Path({str(home)!r}, "postgres/data/postmaster.pid").read_text().split()[0])
            sys.stdout.flush()
            {then}
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
