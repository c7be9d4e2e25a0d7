"""Owner, writer, reader: each role can do its work and nothing else (``database/roles.sql``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.database.connection import connect, storage
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.database.tables import METADATA
from crypto_pipeline.database.version import HEAD
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline.local import ServerInfo
from crypto_pipeline.simulator import SimulatorConfig
from crypto_pipeline_tests.pipelines import Pipeline

NOON = 1_710_504_030_000  # 2024-03-15 12:00:30 UTC
OWNER, WRITER, READER = "candles_owner", "collector", "analyst"
#: What a reader has no business with: the markets are for runs, as ccxt read them.
NOT_FOR_READERS = {"exchange_markets"}
ROLES = files("crypto_pipeline.database").joinpath("roles.sql").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def urls(server: ServerInfo) -> Iterator[dict[str, str]]:
    """A database of an owner who is no superuser, with a user of each role."""
    database = "roles_test"
    with connect(server.url("postgres")) as conn:
        conn.execute("CREATE ROLE candles_owner LOGIN CREATEROLE PASSWORD 'owner-pw'")
        conn.execute(
            sql.SQL("CREATE DATABASE {} OWNER candles_owner").format(sql.Identifier(database))
        )
    url = server.url(database)
    urls = {name: with_user(url, name) for name in (OWNER, WRITER, READER)}
    with connect(url) as conn:  # the extension is an administrator's business
        conn.execute("GRANT CREATE ON SCHEMA public TO candles_owner")
        if server.timescaledb is not None:
            conn.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    upgrade(urls[OWNER])
    with connect(urls[OWNER]) as conn:
        conn.execute(ROLES)
        conn.execute(ROLES)  # again is allowed
        for name, role in ((WRITER, "writer"), (READER, "reader")):
            conn.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(name),
                    sql.Literal(f"{name}-pw"),
                    sql.Identifier(f"crypto_pipeline_{role}"),
                )
            )
    yield urls
    with connect(server.url("postgres")) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
        for name in (WRITER, READER, "crypto_pipeline_writer", "crypto_pipeline_reader", OWNER):
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def with_user(url: str, user: str) -> str:
    found: dict[str, Any] = conninfo_to_dict(url)
    password = "owner-pw" if user == OWNER else f"{user}-pw"
    return f"postgresql://{user}:{password}@{found['host']}:{found['port']}/{found['dbname']}"


def rights(url: str, role: str) -> dict[str, set[str]]:
    """What a role may do to each of our tables, by the server's own word."""
    kinds = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")
    with connect(url) as conn:
        rows = conn.execute(
            "SELECT t, k FROM unnest(%s::text[]) AS t, unnest(%s::text[]) AS k"
            " WHERE has_table_privilege(%s, t, k)",
            [[*METADATA.tables, "crypto_pipeline_version"], list(kinds), role],
        ).fetchall()
    return {table: {kind for t, kind in rows if t == table} for table, _ in rows}


def test_a_whole_run_needs_no_more_than_the_writers_rights(
    urls: dict[str, str], simulate: Callable[..., Any], tmp_path: Any
) -> None:
    """Budget, markets, locks, COPY, staging table, new chunks, gaps, refused rows, checks: all of a
    cold run, of one that merges into it, and of the sensor, as a plain writer."""
    simulator = simulate(
        SimulatorConfig.parse(
            {
                "clock": {"starts_at": NOON},
                "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"]}},
            },
            origin="the test",
        )
    )
    candles = Pipeline.over(simulator, home=tmp_path, database_url=urls[WRITER])
    bad = simulator.control.add_fault(
        act="bad_candles", spoil="negative_price", open_times=[NOON // DAY_MS * DAY_MS]
    )
    candles.run("2024-03-15|binance", may_fail=True)
    assert candles.rows("SELECT count(*) FROM rejected_candles") != [(0,)]
    simulator.control.clear_faults(bad)
    with connect(urls[OWNER]) as conn:  # for the next run to put right
        conn.execute("UPDATE candles SET close = high WHERE symbol = 'ETH/USDT'")
    again = {"crypto_pipeline/again": "true"}
    assert candles.run("2024-03-14|binance", "2024-03-15|binance", tags=again).success
    end = NOON // MINUTE_MS * MINUTE_MS
    assert candles.candles().equals(candles.truth("binance", end - 36 * 60 * MINUTE_MS, end))
    assert candles.heal() == []
    with connect(urls[READER]) as conn:
        assert conn.execute("SELECT count(*) FROM candles").fetchone() == (2 * 36 * 60,)
        filled = conn.execute(
            "SELECT count(*) FROM candles_filled('binance', 'BTC/USDT', '1m', '2024-03-14', '2024-03-15')"
        ).fetchone()
        assert filled == (1_440,)


def test_the_writer_has_no_right_that_runs_do_not_use(urls: dict[str, str]) -> None:
    """Candles, once stored, cannot be deleted by what stores them; nothing can be emptied."""
    work = {"SELECT", "INSERT", "UPDATE"}
    assert rights(urls[WRITER], WRITER) == {
        "candles": work,
        "live_candles": work,
        "candle_partitions": work,
        "exchange_states": work,
        "request_budgets": work,
        "exchange_markets": work,
        "rejected_candles": {"SELECT", "INSERT"},
        "candle_gaps": {*work, "DELETE"},
        "candle_hours": {*work, "DELETE"},
        "candle_series": {"SELECT", "INSERT"},
        "crypto_pipeline_version": {"SELECT"},
    }


def test_the_reader_reads_and_nothing_else(urls: dict[str, str]) -> None:
    """Every table a person asks; none that only runs need."""
    expected = {*METADATA.tables, "crypto_pipeline_version"} - NOT_FOR_READERS
    assert rights(urls[READER], READER) == {table: {"SELECT"} for table in expected}


FORBIDDEN = {
    "drop": "DROP TABLE candles",
    "alter": "ALTER TABLE candles ADD COLUMN extra int",
    "create": "CREATE TABLE mine (a int)",
    "create a function": "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "create a schema": "CREATE SCHEMA mine",
    "truncate": "TRUNCATE candles",
    "delete": "DELETE FROM candles",
    "trigger": "CREATE TRIGGER t BEFORE INSERT ON candles FOR EACH ROW EXECUTE FUNCTION f()",
    "grant": "GRANT crypto_pipeline_writer TO analyst",
    "version": "UPDATE crypto_pipeline_version SET version_num = '0'",
    "files": "COPY candles TO '/tmp/x'",
    "programs": "COPY candles TO PROGRAM 'cat'",
    "settings": "ALTER SYSTEM SET port = 1",
}
NOT_BY_READERS = {
    "insert": "INSERT INTO exchange_states SELECT 'x', now(), now()",
    "update": "UPDATE candles SET close = high",
    "temporary": "CREATE TEMPORARY TABLE mine (a int)",
    "markets": "SELECT * FROM exchange_markets",
    "budget": "SELECT take_request_place('binance', '1 s', '1 s', NULL, 0, 0)",
    "gaps": "DELETE FROM candle_gaps",
}


@pytest.mark.parametrize(
    ("user", "what"),
    [(WRITER, what) for what in FORBIDDEN]
    + [(READER, what) for what in FORBIDDEN | NOT_BY_READERS],
)
def test_what_each_role_may_not_do(urls: dict[str, str], user: str, what: str) -> None:
    """A run that is taken over, or a query that was pasted, destroys nothing."""
    if what == "budget":
        with connect(urls[OWNER]) as conn:
            conn.execute("INSERT INTO request_budgets (name) VALUES ('binance') ON CONFLICT DO NOTHING")  # fmt: skip
    with connect(urls[user]) as conn, pytest.raises(InsufficientPrivilege):
        conn.execute((FORBIDDEN | NOT_BY_READERS)[what])


def test_chunks_are_no_way_around(urls: dict[str, str], server: ServerInfo) -> None:
    """TimescaleDB's chunks are tables of their own, in a schema everybody may use."""
    if server.timescaledb is None:
        pytest.skip("no TimescaleDB here")
    with connect(urls[OWNER]) as conn:
        conn.execute(
            "INSERT INTO candles SELECT 'x', 'A/B', '1m', '2024-01-01', 1, 1, 1, 1, 1, now(), 'r', 'ohlcv'"
        )
        assert storage(conn).hypertable
        chunk = conn.execute("SELECT show_chunks('candles')::text").fetchone()[0]
        conn.execute("DELETE FROM candles WHERE exchange = 'x'")
    for user in (WRITER, READER):
        with connect(urls[user]) as conn:
            for statement in ("DELETE FROM {}", "DROP TABLE {}", "TRUNCATE {}"):
                with pytest.raises(InsufficientPrivilege):
                    conn.execute(statement.format(chunk))
            for call in ("SELECT drop_chunks('candles', now())", "SELECT set_chunk_time_interval('candles', interval '1 day')"):  # fmt: skip
                with pytest.raises((InsufficientPrivilege, psycopg.errors.InvalidParameterValue)):
                    conn.execute(call)


@pytest.mark.parametrize("user", [WRITER, READER])
def test_an_up_to_date_database_is_opened_without_the_owners_rights(
    urls: dict[str, str], user: str
) -> None:
    """Every command begins with ``upgrade``; only a real migration is the owner's."""
    from datetime import timedelta

    with connect(urls[user]) as conn:
        chunk = storage(conn).chunk_interval
    upgrade(urls[user], chunk_interval=chunk or timedelta(days=30))
    with connect(urls[OWNER]) as conn:
        conn.execute("UPDATE crypto_pipeline_version SET version_num = '0001'")
    try:
        with pytest.raises(DatabaseError, match="as user") as refused:
            upgrade(urls[user])
    finally:
        with connect(urls[OWNER]) as conn:
            conn.execute(f"UPDATE crypto_pipeline_version SET version_num = '{HEAD}'")
    assert "owner" in str(refused.value)
    assert not refused.value.rerun_helps


def test_a_later_migrations_tables_have_the_rights_at_once(urls: dict[str, str]) -> None:
    """Nobody runs the script again after each upgrade, and runs must not stop."""
    with connect(urls[OWNER]) as conn:
        conn.execute("CREATE TABLE later (a int)")
    try:
        with connect(urls[WRITER]) as conn:
            conn.execute("INSERT INTO later VALUES (1)")
            with pytest.raises(InsufficientPrivilege):
                conn.execute("TRUNCATE later")
        with connect(urls[READER]) as conn:
            assert conn.execute("SELECT a FROM later").fetchall() == [(1,)]
            with pytest.raises(InsufficientPrivilege):
                conn.execute("DELETE FROM later")
    finally:
        with connect(urls[OWNER]) as conn:
            conn.execute("DROP TABLE later")
