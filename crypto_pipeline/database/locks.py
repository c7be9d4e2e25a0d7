"""Locks that all processes of a deployment share, held by a database session.

A session that ends, however it ends, lets go of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Final

import psycopg

from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import lock_keys

_LOOK_AGAIN_SECONDS: Final = 1.0


@contextmanager
def raw_partition_lock(
    conn: psycopg.Connection, exchange: str, day: date
) -> Iterator[Callable[[], None]]:
    """Alone with a partition's raw file until the block ends.

    A server that restarts lets go of its locks, and we do not hear of it: gives a check to call just
    before the file is replaced, which raises if this session has ended meanwhile.

    Raises:
        DatabaseError: the database is away; without the lock nothing may be written.
    """
    (key,) = lock_keys(purpose="raw", exchange=exchange, parts=[day.isoformat()])
    with database_errors(conn, f"lock the raw partition {day.isoformat()}|{exchange}"):
        conn.execute("SELECT pg_advisory_lock(%s)", [key])

    def still_ours() -> None:
        with database_errors(conn, f"keep the raw partition {day.isoformat()}|{exchange} locked"):
            conn.execute("SELECT 1")

    try:
        yield still_ours
    finally:
        with database_errors(conn, f"unlock the raw partition {day.isoformat()}|{exchange}"):
            conn.execute("SELECT pg_advisory_unlock(%s)", [key])


@contextmanager
def claimed_partitions(
    conn: psycopg.Connection,
    exchange: str,
    days: Sequence[date],
    *,
    waiting: Callable[[date], None],
) -> Iterator[None]:
    """Alone in collecting these partitions until the block ends: no hole is asked for twice at once.

    Claims are taken in the order of days, so that two runs never wait for each other in a circle;
    a run of hours may be in the way, so there is no limit to the wait.

    Args:
        conn: claims go with its session.
        exchange: the partitions' exchange.
        days: their days.
        waiting: told once of the first day that another run has claimed.

    Raises:
        DatabaseError: the database is away.
    """
    told = False
    doing = f"claim partitions of {exchange!r}"
    for day in sorted(set(days)):
        (key,) = lock_keys(purpose="collect", exchange=exchange, parts=[day.isoformat()])
        while not _try(conn, key, doing):
            if not told:
                waiting(day)
                told = True
            time.sleep(_LOOK_AGAIN_SECONDS)
    try:
        yield
    finally:
        with database_errors(conn, f"give back partitions of {exchange!r}"):
            conn.execute("SELECT pg_advisory_unlock_all()")


def _try(conn: psycopg.Connection, key: int, doing: str) -> bool:
    with database_errors(conn, doing):
        return conn.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone() == (True,)
