"""Locks that all processes of a deployment share, held by a database session.

A session that ends, however it ends, lets go of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import psycopg

from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import lock_keys


@contextmanager
def raw_partition_lock(conn: psycopg.Connection, exchange: str, day: date) -> Iterator[None]:
    """Alone with a partition's raw file until the block ends.

    Raises:
        DatabaseError: the database is away; without the lock nothing may be written.
    """
    (key,) = lock_keys(purpose="raw", exchange=exchange, parts=[day.isoformat()])
    with database_errors(conn, f"lock the raw partition {day.isoformat()}|{exchange}"):
        conn.execute("SELECT pg_advisory_lock(%s)", [key])
    try:
        yield
    finally:
        with database_errors(conn, f"unlock the raw partition {day.isoformat()}|{exchange}"):
            conn.execute("SELECT pg_advisory_unlock(%s)", [key])
