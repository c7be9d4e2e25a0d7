"""Bringing a database to this version's tables.

The migrations are in ``migrations/versions``, one file a change, never edited once released. A new
one raises :data:`~crypto_pipeline.database.version.HEAD` and changes
:mod:`crypto_pipeline.database.tables` with it; tests hold the three together. One that fills a table
from the candles locks them first: writers wait, and those of the old version are refused.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from crypto_pipeline.database.connection import connect, open_connection, storage
from crypto_pipeline.database.failures import database_error, database_errors, target_of
from crypto_pipeline.database.statements import lock_keys
from crypto_pipeline.database.version import HEAD, VERSION_TABLE
from crypto_pipeline.errors import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: The first that has ``date_bin``.
OLDEST_SERVER: Final = 140_000

#: Right for dozens of series of 1m, and for years of 1h and 1d. From about a hundred series of 1m
#: on, 7 days keep the newest chunk's index in memory.
DEFAULT_CHUNK_INTERVAL: Final = timedelta(days=30)

_log = logging.getLogger(__name__)


def upgrade(
    url: str, *, chunk_interval: timedelta | None = None, use_timescaledb: bool = True
) -> None:
    """Create or migrate the tables; nothing happens to a database that has them.

    Any number of processes may call this at once.

    Args:
        url: as for :func:`crypto_pipeline.database.connection.connect`.
        chunk_interval: time covered by a chunk of the hypertable. Given for an existing one, it
            counts for the chunks to come. :data:`DEFAULT_CHUNK_INTERVAL` for a new one.
        use_timescaledb: false makes plain tables even where TimescaleDB is there.

    Raises:
        DatabaseError: not reachable, too old, no right to create tables, or the database was written
            by a newer version of this package.
    """
    with connect(url, application_name="crypto_pipeline migrate") as conn:
        refuse_old(conn.info.server_version, where=str(target_of(conn)))
        if _version(conn) != HEAD:
            with database_errors(conn, "wait for another process that migrates"):
                (key,) = lock_keys(purpose="migrate", exchange="")
                conn.execute("SET lock_timeout = 0")  # it may have years of candles to read
                conn.execute("SELECT pg_advisory_lock(%s)", [key])  # until conn is closed
            version = _version(conn)
            _refuse_newer(conn, version)
            if version is None and use_timescaledb:
                _create_extension(url)
            _migrate(
                url,
                conn,
                chunk_interval=chunk_interval or DEFAULT_CHUNK_INTERVAL,
                use_timescaledb=use_timescaledb,
            )
        if chunk_interval is not None:
            _set_chunk_interval(conn, chunk_interval)


def alembic_config(connection: Connection | None = None, **attributes: object) -> Config:
    """Alembic's configuration, without any file; ``attributes`` reach the migrations."""
    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes.update(attributes, connection=connection)
    return config


def _version(conn: psycopg.Connection) -> str | None:
    with database_errors(conn, "read the version of the tables"):
        exists = conn.execute(
            "SELECT FROM pg_tables WHERE schemaname = 'public' AND tablename = %s", [VERSION_TABLE]
        ).fetchone()
        if exists is None:
            return None
        row = conn.execute(
            sql.SQL("SELECT version_num FROM {}").format(sql.Identifier("public", VERSION_TABLE))
        ).fetchone()
    return None if row is None else str(row[0])


def _refuse_newer(conn: psycopg.Connection, version: str | None) -> None:
    script = ScriptDirectory.from_config(alembic_config())
    if version is None or version in {known.revision for known in script.walk_revisions()}:
        return
    raise DatabaseError(
        f"The tables in {target_of(conn)} are of version {version!r}, which this version of"
        f" crypto-pipeline does not know: its own is {HEAD!r}.",
        hint="a newer crypto-pipeline migrated this database: upgrade this one.",
        rerun_helps=False,
    )


def refuse_old(server_version: int, *, where: str) -> None:
    """Refuse a server that lacks what statements use (``date_bin``).

    Raises:
        DatabaseError: it is older than :data:`OLDEST_SERVER`.
    """
    if server_version < OLDEST_SERVER:
        raise DatabaseError(
            f"{where} runs PostgreSQL {server_version // 10_000}, which is too old.",
            hint=f"use PostgreSQL {OLDEST_SERVER // 10_000} or newer.",
            rerun_helps=False,
        )


def _create_extension(url: str) -> None:
    """Create TimescaleDB where it is installed, on a connection of its own.

    A server that has the files but does not preload the library ends the connection that tries.
    """
    with connect(url, application_name="crypto_pipeline migrate") as conn:
        with database_errors(conn, "ask for TimescaleDB"):
            available = conn.execute(
                "SELECT FROM pg_available_extensions"
                " WHERE name = 'timescaledb' AND installed_version IS NULL"
            ).fetchone()
        if available is None:
            return
        try:
            conn.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        except psycopg.Error as error:
            _log.warning(
                "TimescaleDB is installed but cannot be used (%s): candles will be a plain table."
                " To have a hypertable, let an administrator run CREATE EXTENSION timescaledb"
                " and start with an empty database.",
                " ".join(str(error).split()),
            )


def _migrate(
    url: str, conn: psycopg.Connection, *, chunk_interval: timedelta, use_timescaledb: bool
) -> None:
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: open_connection(
            url, application_name="crypto_pipeline migrate", autocommit=False
        ),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            config = alembic_config(
                connection, chunk_interval=chunk_interval, use_timescaledb=use_timescaledb
            )
            command.upgrade(config, HEAD)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise database_error(
                error.orig, target=target_of(conn), doing="migrate the tables"
            ) from error
        raise


def _set_chunk_interval(conn: psycopg.Connection, interval: timedelta) -> None:
    if storage(conn).chunk_interval in {None, interval}:
        return
    with database_errors(conn, "set the chunk interval of candles"):
        conn.execute("SELECT set_chunk_time_interval('public.candles', %s::interval)", [interval])
