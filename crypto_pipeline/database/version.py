"""Which version the tables are of, and what a process of another version may not do: write candles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from crypto_pipeline.database.failures import target_of
from crypto_pipeline.database.statements import table_name
from crypto_pipeline.database.tables import CANDLES
from crypto_pipeline.errors import DatabaseError

if TYPE_CHECKING:
    import psycopg

HEAD: Final = "0006"
VERSION_TABLE: Final = "crypto_pipeline_version"

_VERSION: Final = sql.SQL("SELECT version_num FROM {}").format(
    sql.Identifier("public", VERSION_TABLE)
)
#: Waits for a migration that locked the table, and then looks; one that comes later waits for us.
_VERSION_AMONG_WRITERS: Final = sql.SQL("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE; {}").format(
    table_name(CANDLES), _VERSION
)


def refuse_other_version(conn: psycopg.Connection) -> None:
    """Before anything is written: a process may run on when its tables were migrated.

    Raises:
        DatabaseError: the tables are not of :data:`HEAD`.
    """
    _refuse_other(conn.execute(_VERSION).fetchone(), conn)


def enter_as_writer(cursor: psycopg.ClientCursor[Any]) -> None:
    """First in a transaction that writes candles: no migration that reads them comes in between.

    A process of another version would leave out what this one keeps beside the candles.

    Raises:
        DatabaseError: the tables are not of :data:`HEAD`.
    """
    cursor.execute(_VERSION_AMONG_WRITERS)
    cursor.nextset()
    _refuse_other(cursor.fetchone(), cursor.connection)


def _refuse_other(row: tuple[Any, ...] | None, conn: psycopg.Connection) -> None:
    (version,) = row or (None,)
    if version != HEAD:
        raise DatabaseError(
            f"The tables in {target_of(conn)} are of version {version!r}; this process writes those"
            f" of version {HEAD!r}.",
            hint="nothing was stored. Stop what still runs of the other version and start it again:"
            " `crypto-pipeline up` or `backfill`, or your daemon and code server.",
            rerun_helps=False,
        )
