"""The database killed, ended at once, away, full, in the middle of a run's writes.

On a server of its own, which these tests kill; `crypto-pipeline up` brings it back as they do
(``LocalPostgres.acquire``).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import psutil
import pytest
from psycopg import sql

from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.integration.dying import DyingRun, KillBackend, Signal, stop
from crypto_pipeline_tests.integration.faults import age, healed, nothing_half_is_visible
from crypto_pipeline_tests.local.conftest import server_pid
from crypto_pipeline_tests.pipelines import Pipeline

FIRST, LAST, TODAY = date(2024, 3, 13), date(2024, 3, 14), date(2024, 3, 15)
NOW = day_start_ms(TODAY) + 3 * 3_600_000 + 20_000
FAILED = 3


class OwnServer:
    """A server that a test may kill, and databases on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.postgres = LocalPostgres(home)
        self.info = self.postgres.acquire()
        with connect(self.info.url("postgres")) as conn:
            # No test survives the machine: a recovery need not wait for its disk.
            conn.execute("ALTER SYSTEM SET fsync = off")
            conn.execute("SELECT pg_reload_conf()")
            conn.execute("CREATE DATABASE template")
        upgrade(self.info.url("template"))

    def new_database(self, *, tablespace: str = "pg_default") -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        with connect(self.info.url("postgres")) as conn:
            # TimescaleDB's scheduler connects to every database
            conn.execute("ALTER DATABASE template ALLOW_CONNECTIONS false")
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = 'template'"
            )
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template TABLESPACE {}").format(
                    sql.Identifier(name), sql.Identifier(tablespace)
                )
            )
        return self.info.url(name)

    @property
    def pid(self) -> int:
        return server_pid(self.home)

    def back(self) -> None:
        """As `up` does, which tries again while the server still recovers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                found = self.postgres.acquire()
            except LocalServiceError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            else:
                assert found == self.info
                return


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    home = tmp_path_factory.mktemp("own") / "home"
    own = OwnServer(home)
    yield own
    own.postgres.release()
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    config = {
        "clock": {"frozen_at": NOW},
        "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"]}},
    }
    with running_simulator(SimulatorConfig.parse(config, origin="the test")) as simulator:
        yield simulator


@pytest.fixture
def candles(exchanges: SimulatorHandle, own: OwnServer, tmp_path: Path) -> Pipeline:
    exchanges.control.reset()
    return Pipeline.over(exchanges, home=tmp_path, database_url=own.new_database(), start=FIRST)


DEATHS = [
    (signal.SIGKILL, "between two answers"),
    (signal.SIGKILL, "raw file: written, not in place"),
    (signal.SIGKILL, "in mid COPY"),
    (signal.SIGKILL, "in the ledger's transaction"),
    (signal.SIGQUIT, "in mid COPY"),
    (signal.SIGQUIT, "between COPY and commit"),
]


@pytest.mark.parametrize(("number", "moment"), DEATHS)
def test_a_server_that_dies_under_a_run_loses_and_halves_nothing(
    candles: Pipeline, own: OwnServer, number: int, moment: str
) -> None:
    """`kill -9` of the postmaster, and `pg_ctl restart -m immediate`, at a moment of a run."""
    run = DyingRun(
        candles,
        f"{FIRST}|binance",
        f"{LAST}|binance",
        moment=moment,
        deed=Signal(own.pid, number),
    )
    assert run.wait() == FAILED
    own.back()
    nothing_half_is_visible(candles)
    age(candles)
    candles.heal()
    healed(candles, "binance", FIRST, LAST)


def test_a_backend_killed_in_mid_copy_takes_nothing_with_it(
    candles: Pipeline, own: OwnServer
) -> None:
    """The out-of-memory killer's favourite: the server ends every session and recovers."""
    run = DyingRun(
        candles,
        f"{LAST}|binance",
        moment="in mid COPY",
        deed=KillBackend(candles.settings.require_database_url()),
    )
    assert run.wait() == FAILED
    own.back()
    nothing_half_is_visible(candles)
    candles.heal()
    healed(candles, "binance", LAST, LAST)


def test_a_database_away_from_the_start_stops_the_run_before_it_asks(
    candles: Pipeline, own: OwnServer
) -> None:
    """Nothing goes out, nothing is written; afterwards the next tick does all."""
    os.kill(own.pid, signal.SIGKILL)
    result = candles.run(f"{TODAY}|binance", may_fail=True, tags={EXCHANGE_TAG: "binance"})
    assert not result.success
    assert "Could not connect to database" in str(result.failure_data_for_node("raw_ohlcv").error)
    assert candles.simulator.control.arrivals(endpoint="candles") == []
    own.back()
    candles.tick("binance", f"{TODAY}")
    healed(candles, "binance", TODAY, TODAY)


def test_a_run_that_lost_its_lock_replaces_no_file(candles: Pipeline, own: OwnServer) -> None:
    """The server restarts under a stopped run, another run writes the partition; then it goes on.

    The stopped run's file, made from what was there before, would take the other's rows away.
    """
    stopped = DyingRun(
        candles,
        f"{TODAY}|binance",
        moment="raw file: begun",
        deed=stop,
        tags={EXCHANGE_TAG: "binance"},
    )
    stopped.wait_stopped()
    os.kill(own.pid, signal.SIGKILL)
    own.back()
    candles.simulator.control.set_clock(frozen_at=NOW + 5 * MINUTE_MS)
    candles.tick("binance", f"{TODAY}")
    stopped.go_on()
    assert stopped.wait() == FAILED
    healed(candles, "binance", TODAY, TODAY)


@pytest.fixture
def small_disk(own: OwnServer) -> Iterator[Path]:
    """A disk of 40 MB that the server may use."""
    mount = Path(tempfile.mkdtemp())
    mount.chmod(0o755)  # pytest's folders are closed to the server's user
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", mount], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    os.chown(mount, psutil.Process(own.pid).uids().real, -1)
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)
    mount.rmdir()


def test_a_full_disk_of_the_database_stores_nothing_and_heals(
    exchanges: SimulatorHandle, own: OwnServer, tmp_path: Path, small_disk: Path
) -> None:
    """In the middle of a write: named, undone, and made good once there is space."""
    exchanges.control.reset()
    with connect(own.info.url("postgres")) as conn:
        conn.execute(
            sql.SQL("CREATE TABLESPACE small LOCATION {}").format(sql.Literal(str(small_disk)))
        )
    url = own.new_database(tablespace="small")
    candles = Pipeline.over(exchanges, home=tmp_path, database_url=url, start=FIRST)
    with connect(url) as conn:  # its buffers: a page that is there costs no new space
        conn.execute("CHECKPOINT")
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        left = shutil.disk_usage(small_disk).free - 300_000
        file.write(b"\0" * left)
    result = candles.run(f"{FIRST}|binance", f"{LAST}|binance", may_fail=True)
    assert not result.success
    # our own words: the server's are "No space left" or, of the page that half fits, "wrote only"
    failure = str(result.failure_data_for_node("timescale_candles").error)
    assert "DiskFull" in failure
    assert "free disk space on the database server" in failure
    nothing_half_is_visible(candles)
    ballast.unlink()
    candles.heal()
    healed(candles, "binance", FIRST, LAST)
    with connect(own.info.url("postgres")) as conn:
        conn.execute(
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(url.rsplit("/", 1)[1]))
        )
        conn.execute("DROP TABLESPACE small")


@pytest.fixture
def lake_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the lake, of 2 MB."""
    lake = tmp_path / "lake"
    lake.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", lake], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield lake
    subprocess.run(["umount", "--lazy", lake], check=True)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_lake_that_cannot_be_written_stands_as_it_was_and_heals(
    candles: Pipeline, lake_disk: Path, fault: str
) -> None:
    """The disk fills up, or the system takes it back to read-only after an I/O error."""
    candles.run(f"{FIRST}|binance")
    before = candles.candles()
    if fault == "full":
        (lake_disk / "ballast").write_bytes(b"\0" * (shutil.disk_usage(lake_disk).free - 20_000))
    else:
        subprocess.run(["mount", "-o", "remount,ro", lake_disk], check=True)
    result = candles.run(f"{FIRST}|binance", f"{LAST}|binance", may_fail=True)
    assert not result.success
    assert "cannot be written" in str(result.failure_data_for_node("raw_ohlcv").error)
    nothing_half_is_visible(candles)
    assert candles.candles().equals(before)
    if fault == "full":
        (lake_disk / "ballast").unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", lake_disk], check=True)
    candles.heal()
    healed(candles, "binance", FIRST, LAST)
