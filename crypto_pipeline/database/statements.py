"""Parts of SQL statements, named after the metadata; and the locks writers take."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Table

#: Takes the locks ``keys`` until the transaction ends, smallest first: nobody waits in a circle.
LOCK: Final = sql.SQL("SELECT pg_advisory_xact_lock(key) FROM unnest(%(keys)s::bigint[]) AS key")


def table_name(table: Table) -> sql.Identifier:
    """The table, quoted."""
    return sql.Identifier(table.name)


def names(columns: Iterable[str], *, of: str | None = None) -> sql.Composed:
    """``"a", "b"``, or ``"of"."a", "of"."b"``."""
    parts = [sql.Identifier(name) if of is None else sql.Identifier(of, name) for name in columns]
    return sql.SQL(", ").join(parts)


def assignments(columns: Iterable[str]) -> sql.Composed:
    """``"a" = excluded."a", …`` for ``ON CONFLICT DO UPDATE SET``."""
    return sql.SQL(", ").join(
        sql.SQL("{} = excluded.{}").format(sql.Identifier(name), sql.Identifier(name))
        for name in columns
    )


def lock_keys(*, purpose: str, exchange: str, parts: Iterable[str] = ("",)) -> list[int]:
    """Keys for :data:`LOCK`, one for each part, in the order to take them."""
    names_of_locks = (f"crypto_pipeline\0{purpose}\0{exchange}\0{part}" for part in parts)
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names_of_locks)
    return sorted(int.from_bytes(digest, signed=True) for digest in digests)
