"""What a database error means: one sentence, what to do, and whether a rerun can help.

Messages name host and database and never the password.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import errors

from crypto_pipeline.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIGRATE: Final = "migrate the database: every crypto-pipeline command does so when it starts."

#: (errors, can a rerun help, what to do); the first that fits counts.
_VERDICTS: Final[tuple[tuple[tuple[type[psycopg.Error], ...], bool, str], ...]] = (
    (
        (errors.UniqueViolation,),
        True,
        "another program stored the same key meanwhile: run this again.",
    ),
    (
        (errors.IntegrityError, errors.DataError),
        False,
        "nothing was stored: the rows break a rule of the table.",
    ),
    ((errors.UndefinedTable, errors.UndefinedColumn), False, _MIGRATE),
    (
        (errors.InsufficientPrivilege,),
        False,
        "grant the database user this right, or use the tables' owner.",
    ),
    (
        (errors.LockNotAvailable,),
        True,
        "another run holds this partition: see pg_stat_activity, or wait for it.",
    ),
    ((errors.DiskFull,), True, "free disk space on the database server."),
    (
        (errors.ReadOnlySqlTransaction,),
        True,
        "this server is read-only (a standby?): give the URL of the primary.",
    ),
    ((errors.OperationalError, errors.InternalError, errors.InterfaceError), True, ""),
)

#: PostgreSQL does not hand out the SQLSTATE of a refused connection, only its words.
_REFUSED_FOR_GOOD: Final = ("authentication failed", "does not exist", "no pg_hba.conf entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which database, in words fit for a message."""

    database: str
    host: str
    user: str

    def __str__(self) -> str:
        return f"database {self.database!r} on {self.host} as user {self.user!r}"


def target_of(conn: psycopg.Connection | psycopg.AsyncConnection) -> Target:
    """Where an open connection leads."""
    info = conn.info
    return Target(database=info.dbname, host=f"{info.host}:{info.port}", user=info.user)


@contextmanager
def database_errors(
    where: psycopg.Connection | psycopg.AsyncConnection | Target, doing: str
) -> Iterator[None]:
    """Turn psycopg's errors into :class:`DatabaseError`.

    Args:
        where: the connection used, or where it leads.
        doing: what was tried, to follow "Could not": ``store 1,440 candles of 'binance'``.
    """
    target = where if isinstance(where, Target) else target_of(where)
    try:
        yield
    except psycopg.Error as error:
        raise database_error(error, target=target, doing=doing) from error


def database_error(error: psycopg.Error, *, target: Target, doing: str) -> DatabaseError:
    """The :class:`DatabaseError` that says what ``error`` means."""
    diag = error.diag
    reason = diag.message_primary or str(error).strip() or type(error).__name__
    if diag.constraint_name:
        reason = f"constraint {diag.constraint_name!r} refused a row: {reason}"
    if diag.message_detail:
        reason = f"{reason}. {diag.message_detail.rstrip('.')}"
    rerun_helps, hint = _verdict(error)
    return DatabaseError(
        f"Could not {doing} in {target}: {reason}.", hint=hint or None, rerun_helps=rerun_helps
    )


def connection_error(error: psycopg.Error, *, target: Target) -> DatabaseError:
    """The :class:`DatabaseError` for a connection that was not made."""
    reason = " ".join(str(error).split())
    refused = any(words in reason for words in _REFUSED_FOR_GOOD)
    return DatabaseError(
        f"Could not connect to {target}: {reason.rstrip('.')}.",
        hint="check user, password and database name."
        if refused
        else "check that the database runs and can be reached from here.",
        rerun_helps=not refused,
    )


def _verdict(error: psycopg.Error) -> tuple[bool, str]:
    for kinds, rerun_helps, hint in _VERDICTS:
        if isinstance(error, kinds):
            return rerun_helps, hint
    return False, ""
