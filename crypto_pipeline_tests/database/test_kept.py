"""Connections handed on within a process: the same one, as good as new, and none left at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.kept import connections_kept


@pytest.fixture(scope="module")
def url(new_database: Callable[[], str]) -> str:
    return new_database()


def process(conn: psycopg.Connection) -> int:
    return conn.info.backend_pid


def others(url: str) -> list[int]:
    """Processes of sessions that others have with the database."""
    with psycopg.connect(url) as conn:
        found = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
    return [pid for (pid,) in found]


def leave(url: str, processes: set[int]) -> bool:
    """Whether they all do, soon: a server process hears of its client's end a little later."""
    deadline = time.monotonic() + 10
    while processes & set(others(url)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_next_one_has_the_same_session_and_none_is_left(url: str) -> None:
    with connections_kept():
        with connect(url) as first, connect(url) as second:
            mine = {process(first), process(second)}
            assert len(mine) == 2
        with connect(url) as third, connect(url) as fourth:
            assert {process(third), process(fourth)} == mine
        with connect(url, application_name="other") as other:
            assert process(other) not in mine
        with connections_kept():  # of a caller that does not know of it
            pass
        left = {*mine, process(other)}
        assert left <= set(others(url))
    assert first.closed
    assert leave(url, left)
    with connect(url) as alone:
        pass
    assert alone.closed


def test_one_whose_server_process_ended_is_not_handed_on(url: str) -> None:
    """The server was restarted between two steps: no error of the second."""
    with connections_kept():
        with connect(url) as conn:
            before = process(conn)
        with psycopg.connect(url) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
        with connect(url) as conn:
            assert process(conn) != before
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_locks_are_not_handed_on(url: str) -> None:
    with connections_kept(), psycopg.connect(url) as other:
        with connect(url) as conn:
            conn.execute("SELECT pg_advisory_lock(7)")
        with connect(url):
            assert other.execute("SELECT pg_try_advisory_lock(7)").fetchone() == (True,)


def test_one_whose_user_failed_is_closed(url: str) -> None:
    """A thread that nobody waits for any more may still rely on its locks, which must end with it."""
    with connections_kept():
        used = connect(url)
        conn = used.__enter__()
        conn.execute("SELECT pg_advisory_lock(8)")
        used.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert conn.closed
        with connect(url) as again:
            assert again is not conn


def test_one_that_failed_within_a_transaction_is_closed(url: str) -> None:
    with connections_kept():
        with pytest.raises(psycopg.errors.DivisionByZero), connect(url) as conn:
            conn.execute("BEGIN; SELECT 1 / 0")
        assert conn.closed
        with connect(url) as again:
            assert again.execute("SELECT 1").fetchone() == (1,)
