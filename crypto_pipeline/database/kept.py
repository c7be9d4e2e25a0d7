"""Connections that are handed on to whoever connects next, in a process that connects often.

A login, a server process and TimescaleDB's start in it are 25 ms of CPU, and the steps of a run, their
threads and their locks connect a dozen times.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

#: Of one kind; more are closed when they are given back.
_AT_MOST: Final = 6


@dataclass
class _Kept:
    idle: defaultdict[Hashable, list[psycopg.Connection]] = field(
        default_factory=lambda: defaultdict(list)
    )
    lock: threading.Lock = field(default_factory=threading.Lock)


_kept: _Kept | None = None


@contextmanager
def connections_kept() -> Iterator[None]:
    """Until the block ends, connections of this process are handed on instead of closed."""
    global _kept  # noqa: PLW0603 - one a process, like the connections' server processes
    if _kept is not None:
        yield
        return
    _kept = mine = _Kept()
    try:
        yield
    finally:
        _kept = None
        with mine.lock:
            for conn in (conn for waiting in mine.idle.values() for conn in waiting):
                conn.close()


def take(kind: Hashable) -> psycopg.Connection | None:
    """One that waits and still lives, without locks of its session; None if there is none."""
    kept = _kept
    if kept is None:
        return None
    while True:
        with kept.lock:
            waiting = kept.idle[kind]
            conn = waiting.pop() if waiting else None
        if conn is None:
            return None
        try:
            conn.execute("SELECT pg_advisory_unlock_all()")
        except psycopg.Error:  # its server has gone or was restarted meanwhile
            conn.close()
        else:
            return conn


def give_back(kind: Hashable, conn: psycopg.Connection) -> None:
    """Let the next one have it, or close it."""
    kept = _kept
    if kept is not None and not conn.closed and conn.autocommit:
        with kept.lock:
            waiting = kept.idle[kind]
            idle = conn.info.transaction_status == TransactionStatus.IDLE
            if idle and kept is _kept and len(waiting) < _AT_MOST:
                waiting.append(conn)
                return
    conn.close()
