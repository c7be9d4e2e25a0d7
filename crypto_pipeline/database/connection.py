"""Connections, and what kind of database stands at their other end.

The connection of this project: psycopg 3, autocommit (a write opens its own transaction), UTC.
SQLAlchemy connects only for migrations.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from crypto_pipeline.database import kept
from crypto_pipeline.database.failures import Target, connection_error, database_errors
from crypto_pipeline.errors import ConfigError, DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

Edition = Literal["none", "apache", "timescale"]

CONNECT_TIMEOUT_SECONDS: Final = 10
APPLICATION_NAME: Final = "crypto_pipeline"

_SCHEMES: Final = ("postgresql://", "postgres://", "postgresql+psycopg://")

#: Settings of every session, and the server version each needs.
_SESSION: Final = (
    ("TimeZone", "UTC", 0),
    ("jit", "off", 110_000),  # our statements are short: compiling them costs more than it saves
    # Who has waited for a lock must see what was committed meanwhile.
    ("default_transaction_isolation", "read committed", 0),
    ("lock_timeout", "5min", 0),
    ("idle_in_transaction_session_timeout", "10min", 0),  # a hung run must not hold its partition
    ("tcp_keepalives_idle", "60", 0),  # nor one on a machine that went away (default: two hours)
    ("client_connection_check_interval", "500ms", 150_000),  # nor the statement of a killed one
)

#: Our tables are in public; TimescaleDB's functions where its administrator put them.
_SEARCH_PATH: Final = sql.SQL(
    "set_config('search_path', concat_ws(',', 'public', (SELECT quote_ident(nspname)"
    " FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace"
    " WHERE extname = 'timescaledb')), false)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the candles are stored.

    Attributes:
        server_version: PostgreSQL's number, ``180006`` for 18.6.
        edition: TimescaleDB's edition in this database.
        hypertable: whether ``candles`` is one. A table made on plain PostgreSQL stays plain when
            TimescaleDB arrives later.
        chunk_interval: time covered by the hypertable's next chunks.
    """

    server_version: int
    edition: Edition
    hypertable: bool
    chunk_interval: timedelta | None


@contextmanager
def connect(
    url: str,
    *,
    application_name: str = APPLICATION_NAME,
    connect_timeout: int = CONNECT_TIMEOUT_SECONDS,
) -> Iterator[psycopg.Connection]:
    """An autocommit connection, closed at the end, or handed on where those are kept (:mod:`.kept`).

    Raises:
        DatabaseError: the URL is not one, or the database cannot be reached.
    """
    kind = (url, application_name)
    conn = kept.take(kind) or open_connection(
        url, application_name=application_name, connect_timeout=connect_timeout
    )
    try:
        yield conn
    except BaseException:
        conn.close()  # its locks may still be relied on, by a thread that nobody waits for any more
        raise
    kept.give_back(kind, conn)


def open_connection(
    url: str,
    *,
    application_name: str = APPLICATION_NAME,
    connect_timeout: int = CONNECT_TIMEOUT_SECONDS,
    autocommit: bool = True,
) -> psycopg.Connection:
    """As :func:`connect`, for callers that close it themselves."""
    conninfo, target = _parse(url)
    try:
        conn = psycopg.connect(
            make_conninfo(
                conninfo, application_name=application_name, connect_timeout=connect_timeout
            ),
            autocommit=True,
            prepare_threshold=None,  # plans go by the literals of one partition
        )
    except psycopg.Error as error:
        raise connection_error(error, target=target) from error
    with database_errors(target, "set up a session"):
        conn.execute(_set_up(conn.info.server_version))
        conn.autocommit = autocommit
    return conn


async def open_async_connection(
    url: str,
    *,
    application_name: str = APPLICATION_NAME,
    connect_timeout: int = CONNECT_TIMEOUT_SECONDS,
) -> psycopg.AsyncConnection:
    """As :func:`open_connection`, for an event loop; statements are prepared when they repeat."""
    conninfo, target = _parse(url)
    try:
        conn = await psycopg.AsyncConnection.connect(
            make_conninfo(
                conninfo, application_name=application_name, connect_timeout=connect_timeout
            ),
            autocommit=True,
        )
    except psycopg.Error as error:
        raise connection_error(error, target=target) from error
    with database_errors(target, "set up a session"):
        await conn.execute(_set_up(conn.info.server_version))
    return conn


def check_url(url: str, *, name: str) -> None:
    """Refuse a URL that cannot be read, before a program does whose complaint quotes it.

    Raises:
        ConfigError: with the name of the setting, and nothing of the URL.
    """
    try:
        _parse(url.replace("postgresql+psycopg2://", "postgresql://", 1))
    except DatabaseError as error:
        raise ConfigError(f"{name}: {error.message}", hint=error.hint) from None


def postgres_variables(url: str) -> dict[str, str]:
    """The URL as the environment variables that PostgreSQL's own programs read (``PGHOST`` …).

    Who sees a machine's processes sees their arguments, and in a URL the password; not their
    environment.

    Raises:
        DatabaseError: the URL is not one.
    """
    options = psycopg.pq.Conninfo.parse(_parse(url)[0].encode())
    return {
        option.envvar.decode(): option.val.decode()
        for option in options
        if option.envvar is not None and option.val is not None
    }


def _set_up(server_version: int) -> sql.Composed:
    settings = [
        sql.SQL("set_config({}, {}, false)").format(name, value)
        for name, value, since in _SESSION
        if server_version >= since
    ]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join([_SEARCH_PATH, *settings]))


def edition(conn: psycopg.Connection) -> Edition:
    """TimescaleDB's edition in this database: ``none`` where the extension is not created."""
    with database_errors(conn, "ask for TimescaleDB's edition"):
        row = conn.execute(
            "SELECT current_setting('timescaledb.license', true)"
            " FROM pg_extension WHERE extname = 'timescaledb'"
        ).fetchone()
    return "none" if row is None or row[0] is None else cast("Edition", row[0])


def storage(conn: psycopg.Connection) -> Storage:
    """How this database stores candles."""
    found = edition(conn)
    row = None
    if found != "none":
        with database_errors(conn, "ask how candles are stored"):
            row = conn.execute(
                "SELECT time_interval FROM timescaledb_information.dimensions"
                " WHERE hypertable_schema = 'public' AND hypertable_name = 'candles'"
            ).fetchone()
    return Storage(
        server_version=conn.info.server_version,
        edition=found,
        hypertable=row is not None,
        chunk_interval=None if row is None else row[0],
    )


def _parse(url: str) -> tuple[str, Target]:
    """The URL as libpq takes it, and where it leads.

    Libpq's complaints quote the URL, and an unencoded ``@`` or ``/`` makes the rest of a password
    look like a host, a port or a database: neither may reach a message.
    """
    scheme = next((scheme for scheme in _SCHEMES if url.startswith(scheme)), None)
    if scheme is None:
        raise DatabaseError(
            f"The database URL does not begin with {', '.join(_SCHEMES)}.",
            hint="give a URL that psql takes: postgresql://user:password@host:5432/database",
            rerun_helps=False,
        )
    rest = url.removeprefix(scheme)
    try:
        found = conninfo_to_dict(f"postgresql://{rest}")
    except (psycopg.Error, ValueError):  # ValueError: what is no text once decoded
        found = {}
    authority, _, path = rest.partition("?")[0].partition("/")
    ports = str(found.get("port") or 5432).split(",")
    readable = all(port.isdecimal() and 0 < int(port) < 65_536 for port in ports)
    if not found or authority.count("@") > 1 or "@" in path or not readable:
        raise DatabaseError(
            "The database URL cannot be read.",
            hint="percent-encode special characters of the password (@ is %40, / is %2F).",
            rerun_helps=False,
        )
    host = found.get("host") or "the local socket"
    user = str(found.get("user") or "")
    target = Target(
        database=str(found.get("dbname") or user), host=f"{host}:{','.join(ports)}", user=user
    )
    return f"postgresql://{rest}", target
