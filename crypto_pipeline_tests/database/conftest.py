"""Every test of the database runs on TimescaleDB and on plain PostgreSQL."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.database.tables import METADATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from crypto_pipeline.local import ServerInfo


@pytest.fixture(scope="session")
def make_database(server: ServerInfo) -> Callable[[], str]:
    """Creates an empty database and gives its URL; it goes with the server."""

    def make() -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        database = sql.Identifier(name)
        with connect(server.url("postgres")) as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(database))
            # No test survives the machine: nobody waits for its disk.
            conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(database))
        return server.url(name)

    return make


@pytest.fixture(scope="session")
def timescaledb(server: ServerInfo) -> None:
    """Skips where the local server has no TimescaleDB."""
    if server.timescaledb is None:
        pytest.skip("no TimescaleDB to be had on this machine")


@pytest.fixture(scope="session", params=["timescaledb", "plain"])
def database_url(request: pytest.FixtureRequest, make_database: Callable[[], str]) -> str:
    """A migrated database, shared by the tests of a session."""
    if request.param == "timescaledb":
        request.getfixturevalue("timescaledb")
    url = make_database()
    upgrade(url, use_timescaledb=request.param == "timescaledb")
    return url


@pytest.fixture
def conn(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection to empty tables."""
    with connect(database_url) as conn:
        empty(conn)
        yield conn


def empty(conn: psycopg.Connection) -> None:
    for table in METADATA.sorted_tables:
        conn.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(table.name)))
