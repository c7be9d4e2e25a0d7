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

#: Waits for a migration that locked the table; one that comes later waits for us.
_AMONG_WRITERS: Final = sql.SQL("LOCK TABLE ONLY {} IN ROW EXCLUSIVE MODE").format(
    table_name(CANDLES)
)
_VERSION: Final = sql.SQL("SELECT version_num FROM {}").format(
    sql.Identifier("public", VERSION_TABLE)
)


def refuse_other_version(cursor: psycopg.Cursor[Any]) -> None:
    """First in a transaction that writes candles: a process may run on when its tables were migrated.

    It would leave out what the new version keeps beside the candles.

    Raises:
        DatabaseError: the tables are not of :data:`HEAD`.
    """
    cursor.execute(_AMONG_WRITERS)
    (version,) = cursor.execute(_VERSION).fetchone() or (None,)
    if version != HEAD:
        raise DatabaseError(
            f"The tables in {target_of(cursor.connection)} are of version {version!r}; this process"
            f" writes those of version {HEAD!r}.",
            hint="nothing was stored. Stop what still runs of the other version and start it again:"
            " `crypto-pipeline up`, or your daemon and code server.",
            rerun_helps=False,
        )
