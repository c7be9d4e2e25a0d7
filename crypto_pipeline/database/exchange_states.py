"""When each exchange answered, and since when it is back: what ends the pause after failures."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import psycopg
from psycopg import sql

from crypto_pipeline.core.timeframes import to_ms, utc
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import table_name
from crypto_pipeline.database.tables import EXCHANGE_STATES

#: An exchange that answered nobody for so long was away: the minute schedule asks each minute.
AWAY: Final = timedelta(minutes=3)

_ANSWERED: Final = sql.SQL(
    "INSERT INTO {} AS stored (exchange, answered_at, back_at)"
    " VALUES (%(exchange)s, %(at)s, %(at)s) ON CONFLICT (exchange) DO UPDATE SET"
    " answered_at = excluded.answered_at, back_at = CASE"
    "  WHEN excluded.answered_at > stored.answered_at + %(away)s THEN excluded.answered_at"
    "  ELSE stored.back_at END"
    " WHERE excluded.answered_at > stored.answered_at"
).format(table_name(EXCHANGE_STATES))

_BACK: Final = sql.SQL("SELECT back_at FROM {} WHERE exchange = %(exchange)s").format(
    table_name(EXCHANGE_STATES)
)


def note_answered(conn: psycopg.Connection, *, exchange: str, at: int) -> None:
    """Note that the exchange answered at an instant, ms, our clock."""
    with database_errors(conn, f"note that {exchange!r} answered"):
        conn.execute(_ANSWERED, {"exchange": exchange, "at": utc(at), "away": AWAY})


def back_at(conn: psycopg.Connection, *, exchange: str) -> int | None:
    """Since when the exchange answers again, ms, our clock; None if it never did."""
    with database_errors(conn, f"ask since when {exchange!r} answers"):
        row = conn.execute(_BACK, {"exchange": exchange}).fetchone()
    return None if row is None else to_ms(row[0])
