"""What a crash, a reboot or a kill leaves behind does not stand in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import psutil
import psycopg
import pytest

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.local.processes import FileLock, held
from crypto_pipeline_tests.local.conftest import lives, server_pid
from crypto_pipeline_tests.local.conftest import no_timescaledb as plain


def test_what_was_committed_survives_kill_9(home, query, timescaledb):
    """The postmaster killed (out of memory): acquire() of a user brings it back, data whole."""
    postgres = LocalPostgres(home)
    info = postgres.acquire()
    query(info, "CREATE TABLE t (at timestamptz NOT NULL)")
    query(info, "SELECT create_hypertable('t', by_range('at'))")
    query(
        info,
        "INSERT INTO t SELECT timestamptz '2024-01-01' + i * interval '1 day' FROM generate_series(1, 30) i",
    )
    os.kill(server_pid(home), signal.SIGKILL)
    try:
        assert postgres.acquire() == info
        assert query(info, "SELECT count(*) FROM t") == [(30,)]
    finally:
        postgres.release()


def test_a_backend_that_outlives_its_postmaster_is_ended(home, query, monkeypatch):
    """It computes, so it does not notice; a new server would find its shared memory in use."""
    from crypto_pipeline.local import server

    postgres = LocalPostgres(home, find=plain)
    info = postgres.acquire()

    def compute() -> None:
        with pytest.raises(psycopg.OperationalError):
            query(info, "SELECT count(*) FROM generate_series(1, 100000000000) WHERE random() < 0")

    thread = threading.Thread(target=compute)
    thread.start()
    busy = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%random() < 0' AND pid <> pg_backend_pid()"
    while not (rows := query(info, busy)):
        time.sleep(0.02)
    backend = psutil.Process(rows[0][0])
    monkeypatch.setattr(server, "ORPHANS_SECONDS", 0.2)
    os.kill(server_pid(home), signal.SIGKILL)
    try:
        assert lives(backend.pid)
        assert postgres.acquire() == info
        assert not lives(backend.pid)
        assert query(info, "SELECT 1") == [(1,)]
    finally:
        postgres.release()
        thread.join()


def test_a_pid_file_whose_pid_is_somebody_elses_is_stale(home, query):
    """After a reboot the number belongs to another process, which PostgreSQL would respect."""
    with LocalPostgres(home, find=plain) as info:
        query(info, "CREATE TABLE t AS SELECT 42 AS x")
        lines = (home / "postgres/data/postmaster.pid").read_text().splitlines()
    owner = (home / "postgres/data").stat().st_uid
    user = None if owner == os.geteuid() else owner
    with subprocess.Popen(["sleep", "60"], user=user) as other:
        try:
            lines[0] = str(other.pid)
            stale = home / "postgres/data/postmaster.pid"
            stale.write_text("\n".join(lines) + "\n")
            os.chown(stale, owner, -1)
            with LocalPostgres(home, find=plain) as again:
                assert server_pid(home) != other.pid
                assert query(again, "SELECT x FROM t") == [(42,)]
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_an_interrupt_between_fork_and_pid_file_leaves_no_server(home, monkeypatch, late):
    """SIGTERM as the child was made: its pid file was not there yet, so nobody ended it."""
    from crypto_pipeline.local import server

    class Interrupted(server.DetachedChild):
        def __init__(self, argv, **how):
            super().__init__(["sh", "-c", f'sleep {late}; exec "$@"', "sh", *argv], **how)
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "ORPHANS_SECONDS", 2.0)
    with monkeypatch.context() as patched:
        patched.setattr(server, "DetachedChild", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            LocalPostgres(home, find=plain).acquire()
    with held(FileLock(home / "postgres/server.lock")) as lock:
        assert lock.try_acquire()
    with LocalPostgres(home, find=plain):  # and the next one starts
        pass


def test_an_initdb_that_was_killed_leaves_no_half_database(fresh_home):
    """Power lost at the first start."""
    for name in ("data.new/data", "data.new/other"):
        (fresh_home / "postgres" / name).mkdir(parents=True)
    (fresh_home / "postgres/data.new/data/PG_VERSION").write_text("18\n")
    with LocalPostgres(fresh_home, find=plain):
        assert not (fresh_home / "postgres/data.new").exists()


def test_a_server_not_visible_from_here_is_not_doubled(home, monkeypatch):
    """Two containers on one home: two servers on the same files would destroy them."""
    from crypto_pipeline.local import server

    monkeypatch.setattr(server, "ORPHANS_SECONDS", 0.1)
    with held(FileLock(home / "postgres/server.lock")) as lock:
        assert lock.try_acquire()
        with pytest.raises(LocalServiceError, match="Another PostgreSQL, not visible from here"):
            LocalPostgres(home, find=plain).acquire()


def test_a_server_that_ignores_a_stop_is_stopped_harder(home, monkeypatch):
    """release() must come to an end; what was committed is recovered by the next start."""
    from crypto_pipeline.local import server

    for name in ("FAST_STOP_SECONDS", "QUIT_STOP_SECONDS", "ORPHANS_SECONDS"):
        monkeypatch.setattr(server, name, 0.2)
    postgres = LocalPostgres(home, find=plain)
    postgres.acquire()
    process = psutil.Process(server_pid(home))
    checkpointer = next(p for p in process.children() if "checkpointer" in " ".join(p.cmdline()))
    checkpointer.suspend()  # a fast stop waits for its last checkpoint
    postgres.release()
    assert not lives(process.pid)
    with LocalPostgres(home, find=plain):
        pass
