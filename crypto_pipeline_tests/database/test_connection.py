"""Connections say where they lead, and never with which password."""

from __future__ import annotations

import re
import traceback
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg import errors

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.failures import Target, database_error, database_errors
from crypto_pipeline.errors import DatabaseError

TARGET = Target(database="market", host="db:5432", user="writer")
PASSWORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Z"]), min_size=6)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_the_usual_forms_of_a_url_are_understood(server, scheme) -> None:
    url = server.url("postgres").replace("postgresql", scheme, 1)
    with connect(url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_session_speaks_utc_and_says_its_name(server) -> None:
    with connect(server.url("postgres"), application_name="crypto_pipeline test") as conn:
        rows = conn.execute(
            "SELECT name, setting FROM pg_settings WHERE name IN ('TimeZone', 'jit',"
            " 'application_name', 'lock_timeout', 'client_connection_check_interval')"
        ).fetchall()
    assert dict(rows) == {
        "TimeZone": "UTC",
        "jit": "off",
        "application_name": "crypto_pipeline test",
        "lock_timeout": "300000",
        "client_connection_check_interval": "500",
    }


def test_a_connection_is_closed_also_after_an_error(server) -> None:
    with pytest.raises(ZeroDivisionError), connect(server.url("postgres")) as conn:
        raise ZeroDivisionError
    assert conn.closed


@settings(max_examples=100, deadline=None)
@given(
    password=PASSWORDS,
    quoted=st.booleans(),
    rest=st.sampled_from(
        [
            "@127.0.0.1:1/market",
            "@127.0.0.1:port/market",
            "@[::1/x",
            "@127.0.0.1:1/market?nonsense=1",
            "",
        ]
    ),
)
@example(password="000%80", quoted=False, rest="@127.0.0.1:1/market")
@example(password="first@secretly", quoted=False, rest="@127.0.0.1:1/market")
@example(password="12/secretly", quoted=False, rest="@127.0.0.1:1/market")
@example(password="12?secretly", quoted=False, rest="@127.0.0.1:1/market")
def test_no_failure_tells_the_password(password, quoted, rest) -> None:
    """Libpq quotes a URL it cannot read, whole; runs show their errors to everybody."""
    given_password = quote(password, safe="") if quoted else password
    assume(rest or "@" not in given_password)  # what follows a bare @ is a host to everybody
    with (
        pytest.raises(DatabaseError) as failed,
        connect(f"postgresql://u:{given_password}{rest}", connect_timeout=2),
    ):
        pass
    told = "".join(traceback.format_exception(failed.value, limit=0)) + str(failed.value)
    pieces = [password, given_password, *re.split("[@/:?]", given_password)]
    # a row of zeros stands in the message by itself, as do other single characters
    telling = [piece for piece in pieces if len(piece) >= 6 and len(set(piece)) > 1]
    assert not [piece for piece in telling if piece in told]


def test_an_unreachable_database_is_worth_another_try() -> None:
    with (
        pytest.raises(
            DatabaseError, match=r"'market' on 127.0.0.1:1 as user 'u'.*refused"
        ) as failed,
        connect("postgresql://u:secret@127.0.0.1:1/market"),
    ):
        pass
    assert failed.value.rerun_helps


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.url("nowhere"), 'database "nowhere" does not exist'),
        (
            lambda info: info.url("postgres").replace(":", ":wrong", 2).replace(":wrong//", "://"),
            "authentication failed",
        ),
    ],
)
def test_a_refused_connection_is_not_tried_again(server, change, words) -> None:
    with pytest.raises(DatabaseError, match=words) as failed, connect(change(server)):
        pass
    assert not failed.value.rerun_helps
    assert server.password not in str(failed.value)


@pytest.mark.parametrize(
    "url", ["", "mysql://u:p@h/d", "host=localhost password=secret", "market.db"]
)
def test_what_is_no_postgresql_url_is_refused(url) -> None:
    with (
        pytest.raises(DatabaseError, match="does not begin with postgresql://") as failed,
        connect(url),
    ):
        pass
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize(
    ("error", "rerun_helps"),
    [
        (errors.DeadlockDetected, True),
        (errors.SerializationFailure, True),
        (errors.AdminShutdown, True),
        (errors.LockNotAvailable, True),
        (errors.DiskFull, True),
        (errors.ReadOnlySqlTransaction, True),
        (errors.UniqueViolation, True),
        (psycopg.OperationalError, True),
        (psycopg.InterfaceError, True),
        (errors.CheckViolation, False),
        (errors.NumericValueOutOfRange, False),
        (errors.UndefinedTable, False),
        (errors.InsufficientPrivilege, False),
        (errors.SyntaxError, False),
        (errors.FeatureNotSupported, False),
    ],
)
def test_whether_a_rerun_can_help(error, rerun_helps) -> None:
    found = database_error(error("so it said"), target=TARGET, doing="store 3 candles")
    assert found.rerun_helps is rerun_helps
    assert str(found).startswith(
        "Could not store 3 candles in database 'market' on db:5432 as user 'writer': so it said."
    )


def test_a_table_that_is_missing_is_told_with_what_to_do(server) -> None:
    with (
        connect(server.url("postgres")) as conn,
        pytest.raises(DatabaseError, match=r'"candles" does not exist.*migrate the database'),
        database_errors(conn, "read candles"),
    ):
        conn.execute("SELECT * FROM candles")


def test_a_connection_lost_in_between_is_worth_another_try(server) -> None:
    def ask(conn: psycopg.Connection, statement: str) -> None:
        with database_errors(conn, "read candles"):
            conn.execute(statement)

    with connect(server.url("postgres")) as conn:
        with pytest.raises(DatabaseError, match="terminating connection") as failed:
            ask(conn, "SELECT pg_terminate_backend(pg_backend_pid())")
        assert failed.value.rerun_helps
        with pytest.raises(DatabaseError, match=r"'postgres' on .*connection") as failed:
            ask(conn, "SELECT 1")
        assert failed.value.rerun_helps
