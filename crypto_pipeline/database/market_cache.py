"""The markets of each exchange, kept for all runs on all machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from psycopg import sql

from crypto_pipeline.core.timeframes import to_ms, utc
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import assignments, names, table_name
from crypto_pipeline.database.tables import EXCHANGE_MARKETS

_COLUMNS: Final = tuple(EXCHANGE_MARKETS.columns.keys())
_READ: Final = sql.SQL(
    "SELECT loaded_at, markets FROM {} WHERE exchange = %(exchange)s"
    " AND fingerprint = %(fingerprint)s"
).format(table_name(EXCHANGE_MARKETS))
_WRITE: Final = sql.SQL(
    "INSERT INTO {} AS stored ({}) VALUES ({}) ON CONFLICT (exchange) DO UPDATE SET {}"
).format(
    table_name(EXCHANGE_MARKETS),
    names(_COLUMNS),
    sql.SQL(", ").join(map(sql.Placeholder, _COLUMNS)),
    assignments(_COLUMNS[1:]),
)


class StoredMarkets:
    """The markets of one exchange; ``url`` is asked for when they are, not before."""

    def __init__(self, url: Callable[[], str], exchange: str) -> None:
        self._url = url
        self._exchange = exchange

    def read(self, fingerprint: str) -> tuple[int, str] | None:
        """When they were loaded, ms, and what was written; None if for another fingerprint.

        Raises:
            DatabaseError: the database is away.
        """
        doing = f"read the markets of {self._exchange!r}"
        with connect(self._url()) as conn, database_errors(conn, doing):
            row = conn.execute(
                _READ, {"exchange": self._exchange, "fingerprint": fingerprint}
            ).fetchone()
        return None if row is None else (to_ms(row[0]), row[1])

    def write(self, fingerprint: str, loaded_at: int, markets: str) -> None:
        """Replace them.

        Raises:
            DatabaseError: the database is away.
        """
        row = (self._exchange, fingerprint, utc(loaded_at), markets)
        doing = f"keep the markets of {self._exchange!r}"
        with connect(self._url()) as conn, database_errors(conn, doing):
            conn.execute(_WRITE, dict(zip(_COLUMNS, row, strict=True)))
