"""Who starts the server, who attaches to it, who stops it, and what it is like."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
from contextlib import ExitStack
from functools import partial

import psutil
import psycopg
import pytest

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.local.timescaledb import find_timescaledb
from crypto_pipeline_tests.local.conftest import lives, no_timescaledb, server_pid


def test_a_first_start_gives_timescaledb_and_safe_settings(fresh_home, query, timescaledb):
    """The promises of the local database: hypertables, UTC, nothing committed is lost."""
    said = []
    with LocalPostgres(fresh_home, log=said.append) as info:
        query(info, "CREATE TABLE t (at timestamptz NOT NULL, x int)")
        query(info, "SELECT create_hypertable('t', by_range('at'))")
        query(
            info,
            "INSERT INTO t SELECT timestamptz '2024-01-01' + i * interval '1 day', i FROM generate_series(1, 30) i",
        )
        assert query(info, "SELECT count(*) > 1 FROM timescaledb_information.chunks") == [(True,)]
        assert query(info, "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'") == [
            (info.timescaledb,)
        ]
        expected = {
            "TimeZone": "UTC",
            "fsync": "on",
            "data_checksums": "on",
            "full_page_writes": "on",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "jit": "off",
            "max_locks_per_transaction": "256",
            "client_connection_check_interval": "500",
        }
        rows = query(info, "SELECT name, setting FROM pg_settings")
        assert {k: v for k, v in rows if k in expected} == expected
        assert query(info, "SHOW timescaledb.telemetry_level") == [("off",)]
        with psycopg.connect(info.url("dagster")) as connection:
            extensions = connection.execute("SELECT extname FROM pg_extension").fetchall()
            assert extensions == [("plpgsql",)]
    assert said == []


def test_the_last_user_out_stops_the_server(home, query):
    """`exec` in one terminal must not take the database from `up` in another."""
    first, second = (
        LocalPostgres(home, find=no_timescaledb),
        LocalPostgres(home, find=no_timescaledb),
    )
    info = first.acquire()
    pid = server_pid(home)
    assert second.acquire() == info
    assert server_pid(home) == pid
    first.release()
    assert query(info, "SELECT 1") == [(1,)]
    first.release()  # again: not a user any more, so nothing happens
    assert query(info, "SELECT 1") == [(1,)]
    second.release()
    assert not lives(pid)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(info.url("crypto_pipeline"))


def test_data_and_address_stay_from_one_start_to_the_next(home, query):
    """A URL noted in a notebook works tomorrow."""
    with LocalPostgres(home, find=no_timescaledb) as before:
        query(before, "CREATE TABLE t AS SELECT 42 AS x")
    with LocalPostgres(home, find=no_timescaledb) as after:
        assert after == before
        assert query(after, "SELECT x FROM t") == [(42,)]


def test_users_that_come_at_once_share_one_server(fresh_home, user_process):
    """Two commands started together on a fresh clone must not both run initdb."""
    users = [user_process(fresh_home, "sys.stdin.read(); postgres.release()") for _ in range(4)]
    pids = {user.stdout.readline() for user in users}
    assert len(pids) == 1
    for user in users:
        user.communicate()
        assert user.returncode == 0
    assert not lives(int(pids.pop()))


def test_a_killed_users_server_is_attached_to(home, user_process):
    """kill -9 of `up`: its lock frees itself, its server serves the next, who stops it."""
    user = user_process(home, "time.sleep(60)")
    pid = int(user.stdout.readline())
    user.kill()
    assert user.wait() == -signal.SIGKILL
    with LocalPostgres(home, find=no_timescaledb):
        assert server_pid(home) == pid
    assert not lives(pid)


def test_the_server_is_apart_from_its_starters_terminal_and_pipes(home, user_process):
    """Ctrl-C in a user's terminal, and `crypto-pipeline … | cat`, must not touch the server."""
    user = user_process(home, "sys.exit()")
    pid = int(user.stdout.readline())
    user.communicate(timeout=10)  # would hang if the server held the pipe
    assert os.getsid(pid) == pid
    with LocalPostgres(home, find=no_timescaledb):
        assert server_pid(home) == pid


def test_a_password_is_needed_and_kept_private(home):
    """Any user of the machine can reach the port."""
    with LocalPostgres(home, find=no_timescaledb) as info:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(info.url("postgres").replace(info.password, "wrong"))
        assert stat.S_IMODE((home / "postgres/password").stat().st_mode) == 0o600
        assert info.password not in repr(info)
        for path in (home / "postgres").glob("*.conf"):
            assert info.password not in path.read_text()


def test_only_this_machine_and_only_a_password_gets_in(home):
    """Another user of the machine has the loopback address, and no socket, trust or empty password."""
    with LocalPostgres(home, find=no_timescaledb) as info:
        listening = [
            each
            for each in psutil.Process(server_pid(home)).net_connections("all")
            if each.status == psutil.CONN_LISTEN or each.family == socket.AF_UNIX
        ]
        assert [(each.family, each.laddr) for each in listening] == [
            (socket.AF_INET, ("127.0.0.1", info.port))
        ]
        with psycopg.connect(info.url("postgres")) as connection:
            rules = connection.execute(
                "SELECT type, database, user_name, address, netmask, auth_method"
                " FROM pg_hba_file_rules"
            ).fetchall()
            (secret,) = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolcanlogin").fetchone()  # fmt: skip
        assert rules == [
            ("host", ["all"], ["all"], "127.0.0.1", "255.255.255.255", "scram-sha-256")
        ]
        assert secret.startswith("SCRAM-SHA-256$")
        for user, password in ((info.user, ""), ("postgres", info.password), ("root", "")):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(
                    host=info.host, port=info.port, dbname="postgres", user=user, password=password
                )


def test_no_process_of_the_server_can_tell_the_password(home):
    """Arguments are shown to every user, the environment to the server's own."""
    with LocalPostgres(home, find=no_timescaledb) as info:
        postmaster = psutil.Process(server_pid(home))
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.AccessDenied, psutil.NoSuchProcess):  # ended meanwhile
                assert info.password not in " ".join(process.cmdline())
                assert info.password not in str(process.environ())
        assert not any("CRYPTO_PIPELINE" in name for name in postmaster.environ())
        assert stat.S_IMODE((home / "postgres/data").stat().st_mode) == 0o700


def test_psql_takes_the_url(home):
    """CRYPTO_PIPELINE_DATABASE_URL is documented as one that psql takes."""
    from crypto_pipeline.local.cluster import installation

    with LocalPostgres(home, find=no_timescaledb) as info:
        psql = [installation() / "bin/psql", info.url("crypto_pipeline"), "-XAtc", "SELECT 1"]
        assert subprocess.run(psql, capture_output=True, check=True).stdout == b"1\n"


def test_another_port_is_taken_when_ours_is_in_use(home, query):
    """The remembered port may belong to somebody else after a reboot."""
    with LocalPostgres(home, find=no_timescaledb) as before:
        query(before, "CREATE TABLE t AS SELECT 42 AS x")
    with (
        socket.create_server(("127.0.0.1", before.port)),
        LocalPostgres(home, find=no_timescaledb) as after,
    ):
        assert after.port != before.port
        assert query(after, "SELECT x FROM t") == [(42,)]


def test_a_port_lost_between_look_and_start_is_replaced(home, monkeypatch):
    """Looking for a free port and listening on it are two steps."""
    from crypto_pipeline.local import server

    with LocalPostgres(home, find=no_timescaledb) as before:
        pass
    with socket.create_server(("127.0.0.1", before.port)):
        answers = iter([True])
        monkeypatch.setattr(server, "port_is_free", lambda _: next(answers, True))
        with LocalPostgres(home, find=no_timescaledb) as after:
            assert after.port != before.port


def test_without_timescaledb_it_says_so_once_and_runs_plain(home, tmp_path, query):
    """A machine without a Debian mirror still gets a database, and the reason."""
    said = []
    find = partial(find_timescaledb, suites=("no-such-suite",))
    with LocalPostgres(home, cache=tmp_path / "cache", log=said.append, find=find) as info:
        assert info.timescaledb is None
        with LocalPostgres(home, cache=tmp_path / "cache", log=said.append, find=find) as second:
            assert second == info
        assert query(info, "SELECT count(*) FROM pg_extension") == [(1,)]
    assert len(said) == 1
    assert said[0].startswith("Running on plain PostgreSQL, without TimescaleDB: ")


def test_an_extension_found_later_is_added(home, timescaledb):
    """A first start on a train, the second at home."""
    with LocalPostgres(home, find=no_timescaledb) as plain:
        assert plain.timescaledb is None
    with LocalPostgres(home) as info:
        assert info.timescaledb is not None


def test_data_made_with_the_extension_is_not_served_without_it(home, timescaledb):
    """Hypertables read without the extension look empty: an error instead."""
    with LocalPostgres(home):
        pass
    with pytest.raises(LocalServiceError, match=r"made with TimescaleDB 2\..*there is no apt-get"):
        LocalPostgres(home, find=no_timescaledb).acquire()


def test_an_extension_that_does_not_load_leaves_plain_postgresql(home, timescaledb, tmp_path):
    """A package rebuilt against something this machine lacks must not take the database away."""
    from dataclasses import replace

    root = tmp_path / "root"
    shutil.copytree(timescaledb.root, root, symlinks=True)
    broken = replace(timescaledb, root=root)
    broken.loader_library.write_bytes(b"not a library")
    said = []
    with LocalPostgres(home, log=said.append, find=lambda _: broken) as info:
        assert info.timescaledb is None
    assert "does not start with TimescaleDB" in said[0]


def test_another_major_version_is_refused(home):
    """PostgreSQL 18 cannot read another version's files, and must not try."""
    with LocalPostgres(home, find=no_timescaledb):
        pass
    (home / "postgres/data/PG_VERSION").write_text("17\n")
    with pytest.raises(LocalServiceError, match="made by PostgreSQL 17, and this is 18"):
        LocalPostgres(home, find=no_timescaledb).acquire()


def test_a_failed_start_shows_the_logs_end(home):
    """The reason stands in a log the user has never heard of."""
    with LocalPostgres(home, find=no_timescaledb):
        pass
    (home / "postgres/data/postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(LocalServiceError, match="no_such_setting"):
        LocalPostgres(home, find=no_timescaledb).acquire()
    (home / "postgres/data/postgresql.auto.conf").write_text("")
    with LocalPostgres(home, find=no_timescaledb):  # nothing of the failure stays in the way
        pass


def test_a_home_that_cannot_be_made_is_said_clearly(tmp_path):
    """CRYPTO_PIPELINE_HOME with a typing error."""
    (tmp_path / "file").touch()
    with pytest.raises(LocalServiceError, match="cannot be made in"):
        LocalPostgres(tmp_path / "file" / "home").acquire()


def test_removing_the_home_starts_afresh(home, query):
    """`rm -rf .crypto_pipeline` is the documented way to start afresh."""
    with LocalPostgres(home, find=no_timescaledb) as before:
        query(before, "CREATE TABLE t AS SELECT 42 AS x")
    shutil.rmtree(home)
    with LocalPostgres(home, find=no_timescaledb) as after:
        assert after.password != before.password
        assert query(after, "SELECT to_regclass('t')") == [(None,)]


def test_removing_the_home_under_a_running_server_ends_it(home):
    """No server may stay on files that are gone."""
    postgres = LocalPostgres(home, find=no_timescaledb)
    postgres.acquire()
    process = psutil.Process(server_pid(home))
    shutil.rmtree(home)
    postgres.release()
    process.wait(timeout=10)


def test_an_interrupted_start_leaves_nothing(home, monkeypatch):
    """Ctrl-C while the server starts: no server that nobody knows of, no lock, a start later."""
    from crypto_pipeline.local import postgres as module

    with monkeypatch.context() as patch, ExitStack() as stack:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "_connect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            stack.enter_context(LocalPostgres(home, find=no_timescaledb))
    assert not (home / "postgres/data/postmaster.pid").exists()
    with LocalPostgres(home, find=no_timescaledb) as info:
        assert info.port
