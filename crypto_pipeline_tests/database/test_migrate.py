"""The migrations make what tables.py says, once, for everybody at the same time."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from crypto_pipeline.database.candle_reader import read_candles
from crypto_pipeline.database.candle_writer import replace_live_candles, upsert_candles
from crypto_pipeline.database.connection import connect, edition, open_connection, storage
from crypto_pipeline.database.migrate import (
    DEFAULT_CHUNK_INTERVAL,
    alembic_config,
    refuse_old,
    upgrade,
)
from crypto_pipeline.database.tables import METADATA
from crypto_pipeline.database.version import HEAD, VERSION_TABLE
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline_tests.database.frames import WINDOW, candles

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Engine

CATALOGUE = {
    "columns": (
        "SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name"
        " FROM information_schema.columns WHERE table_schema = 'public'"
    ),
    "constraints": (
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace"
    ),
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "views": ("SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'"),
    "functions": (
        "SELECT proname, pg_get_functiondef(oid), proparallel, provolatile FROM pg_proc AS p"
        " WHERE pronamespace = 'public'::regnamespace AND NOT EXISTS ("
        "  SELECT FROM pg_depend WHERE objid = p.oid AND deptype = 'e')"  # an extension's
    ),
}


def catalogue(url: str) -> dict[str, set[tuple[object, ...]]]:
    with connect(url) as conn:
        found = {name: set(conn.execute(query).fetchall()) for name, query in CATALOGUE.items()}
    return {name: {row for row in rows if row[0] != VERSION_TABLE} for name, rows in found.items()}


def engine_of(url: str) -> Engine:
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: open_connection(url, autocommit=False),
        poolclass=NullPool,
    )


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


def test_autogenerate_finds_nothing_to_change(database_url) -> None:
    with engine_of(database_url).connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, METADATA) == []


def test_migrated_and_created_tables_are_equal_in_the_catalogue(
    database_url, make_database
) -> None:
    """Autogenerate sees no CHECK constraint, collation or function: these would drift unseen."""
    created = make_database()
    with engine_of(created).begin() as connection:
        METADATA.create_all(connection)
    assert catalogue(database_url) == catalogue(created)
    assert {row[0] for row in catalogue(created)["views"]} == {"latest_candles"}
    assert {row[0] for row in catalogue(created)["functions"]} == {
        "candles_filled",
        "take_request_place",
    }


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_a_new_database_gets_the_hypertable(timescaledb, make_database) -> None:
    url = make_database()
    upgrade(url)
    with connect(url) as conn:
        found = storage(conn)
        indexes = conn.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'candles'")
        assert indexes.fetchall() == [("candles_pkey",)]  # the default one costs 31 % of COPY
    assert found.edition == "apache"
    assert found.hypertable
    assert found.chunk_interval == DEFAULT_CHUNK_INTERVAL


def test_the_chunk_interval_is_a_setting(timescaledb, make_database) -> None:
    """Given for an existing hypertable, it counts from the next chunk on."""
    url = make_database()
    for given, expected in ((7, 7), (None, 7), (3, 3)):
        upgrade(url, chunk_interval=None if given is None else timedelta(days=given))
        with connect(url) as conn:
            assert storage(conn).chunk_interval == timedelta(days=expected)


def test_timescaledb_may_live_in_another_schema(timescaledb, make_database) -> None:
    """Managed databases put extensions into a schema of their own."""
    url = make_database()
    with connect(url) as conn:
        conn.execute('CREATE SCHEMA "Extensions"')
        conn.execute('CREATE EXTENSION timescaledb SCHEMA "Extensions"')
    upgrade(url, chunk_interval=timedelta(days=5))
    upgrade(url, chunk_interval=timedelta(days=6))
    with connect(url) as conn:
        assert storage(conn).chunk_interval == timedelta(days=6)


def test_a_plain_table_stays_when_timescaledb_comes_later(timescaledb, make_database) -> None:
    url = make_database()
    upgrade(url, use_timescaledb=False)
    with connect(url) as conn:
        assert edition(conn) == "none"
        conn.execute("CREATE EXTENSION timescaledb")
    upgrade(url, chunk_interval=timedelta(days=7))
    with connect(url) as conn:
        found = storage(conn)
    assert (found.edition, found.hypertable, found.chunk_interval) == ("apache", False, None)


def test_migrating_again_changes_nothing(database_url) -> None:
    before = catalogue(database_url)
    upgrade(database_url)
    assert catalogue(database_url) == before


@pytest.mark.parametrize("use_timescaledb", [True, False])
def test_a_database_of_the_first_version_keeps_its_candles(
    request, make_database, database_url, use_timescaledb
) -> None:
    """Deployed databases are upgraded when the next command starts, with all that is in them."""
    if use_timescaledb:
        request.getfixturevalue("timescaledb")
    url = make_database()
    if use_timescaledb:
        with connect(url) as conn:
            conn.execute("CREATE EXTENSION timescaledb")
    with engine_of(url).begin() as connection:
        config = alembic_config(
            connection, chunk_interval=timedelta(days=7), use_timescaledb=use_timescaledb
        )
        command.upgrade(config, "0001")
    frame = candles(["BTC/USDT", "ETH/USDT"], minutes=100)
    names = ["symbol", "timeframe", "open_time", "open", "high", "low", "close", "volume"]
    names += ["fetched_at", "run_id", "source"]
    with connect(url) as conn:
        conn.cursor().executemany(
            f"INSERT INTO candles (exchange, {', '.join(names)})"
            " VALUES ('binance', %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            frame[names].astype(object).to_numpy().tolist(),
        )
        before = conn.execute("SELECT xmin::text, * FROM candles ORDER BY 2, 3, 4, 5").fetchall()
    upgrade(url)
    assert catalogue(url) == catalogue(database_url)
    with connect(url) as conn:
        after = conn.execute("SELECT xmin::text, * FROM candles ORDER BY 2, 3, 4, 5").fetchall()
        assert storage(conn).hypertable is use_timescaledb
        assert upsert_candles(conn, frame, **WINDOW).unchanged == len(frame)
        found = read_candles(conn, symbol="BTC/USDT", timeframe="1m", fill=True, **WINDOW)
        series = conn.execute("SELECT symbol, open_time FROM latest_candles").fetchall()
    assert after == before
    assert len(found) == 100
    assert dict(series) == dict.fromkeys(["BTC/USDT", "ETH/USDT"], frame["open_time"].max())


def test_several_processes_migrate_at_once(make_database) -> None:
    """Dagster starts a process for each run, and on a new machine they all find no tables."""
    url = make_database()
    program = (
        "import sys; from crypto_pipeline.database.migrate import upgrade; upgrade(sys.argv[1])"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, url], stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    complaints = [run.communicate(timeout=60)[1].decode() for run in runs]
    assert [(run.returncode, said) for run, said in zip(runs, complaints, strict=True)] == [
        (0, "")
    ] * 3
    with connect(url) as conn:
        assert conn.execute("SELECT version_num FROM crypto_pipeline_version").fetchall() == [
            (HEAD,)
        ]


def test_a_newer_database_is_refused(make_database) -> None:
    url = make_database()
    upgrade(url)
    with connect(url) as conn:
        conn.execute("UPDATE crypto_pipeline_version SET version_num = '9999'")
    before = catalogue(url)
    with pytest.raises(DatabaseError, match=r"'9999'.*upgrade this one") as refused:
        upgrade(url)
    assert not refused.value.rerun_helps
    assert catalogue(url) == before


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_process_of_another_version_writes_nothing(
    timescaledb, make_database, isolation: str
) -> None:
    """It runs on while its tables are migrated, and would leave out what the new version keeps.

    One that comes while the migration reads the candles waits for it, and is refused as well, whatever
    the database's own idea of a snapshot is.
    """
    url = make_database()
    upgrade(url)
    with connect(url) as conn:
        conn.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(
                sql.Identifier(conn.info.dbname), isolation
            )
        )
    frame = candles(["BTC/USDT"], minutes=10)
    with connect(url) as migrating, connect(url) as conn, ThreadPoolExecutor(1) as pool:
        with migrating.transaction():
            migrating.execute("LOCK TABLE candles IN SHARE MODE")
            writing = pool.submit(upsert_candles, conn, frame, **WINDOW)
            while not migrating.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone():
                assert not writing.done()
            migrating.execute("UPDATE crypto_pipeline_version SET version_num = '9999'")
        for refused in (
            writing.result,
            lambda: upsert_candles(conn, frame, **WINDOW),
            lambda: replace_live_candles(conn, frame, exchange="binance"),
        ):
            with pytest.raises(DatabaseError, match=r"'9999'.*'000.*nothing was stored") as caught:
                refused()
            assert not caught.value.rerun_helps
        for table in ("candles", "live_candles", "candle_hours"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        migrating.execute("UPDATE crypto_pipeline_version SET version_num = %s", [HEAD])
        assert upsert_candles(conn, frame, **WINDOW).inserted == len(frame)


def test_tables_of_another_program_are_left_alone(make_database) -> None:
    url = make_database()
    with connect(url) as conn:
        conn.execute("CREATE TABLE candles (id int)")
    with pytest.raises(DatabaseError, match='"candles" already exists') as refused:
        upgrade(url)
    assert not refused.value.rerun_helps
    with connect(url) as conn:
        assert conn.execute("SELECT to_regclass('crypto_pipeline_version')").fetchone() == (None,)


@pytest.fixture
def guest(make_database) -> tuple[str, psycopg.Connection]:
    """An empty database seen by a user without rights, and a connection of its owner."""
    url = make_database()
    with connect(url) as conn:
        conn.execute("DROP ROLE IF EXISTS guest")
        conn.execute("CREATE ROLE guest LOGIN PASSWORD 'guest-secret'")
        yield with_user(url, "guest", "guest-secret"), conn
        conn.execute("DROP OWNED BY guest")
        conn.execute("DROP ROLE guest")


def test_a_user_who_may_not_create_tables_is_told_so(guest) -> None:
    url, _ = guest
    with pytest.raises(DatabaseError, match="permission denied for schema public") as refused:
        upgrade(url)
    assert "as user 'guest'" in str(refused.value)
    assert "grant" in str(refused.value)
    assert "guest-secret" not in str(refused.value)
    assert not refused.value.rerun_helps


def test_a_user_who_may_not_create_the_extension_gets_plain_tables(
    timescaledb, guest, caplog
) -> None:
    """CREATE on the schema is enough for the tables; the extension needs CREATE on the database."""
    url, owner = guest
    owner.execute("GRANT CREATE ON SCHEMA public TO guest")
    with caplog.at_level(logging.WARNING):
        upgrade(url)
    assert "candles will be a plain table" in caplog.text
    with connect(url) as conn:
        assert not storage(conn).hypertable


def test_a_server_too_old_for_our_statements_is_refused_by_name() -> None:
    """The first of them would fail with "function date_bin does not exist"."""
    refuse_old(140_000, where="db at host")
    with pytest.raises(DatabaseError, match=r"db at host runs PostgreSQL 13, .* 14 or newer"):
        refuse_old(130_018, where="db at host")
