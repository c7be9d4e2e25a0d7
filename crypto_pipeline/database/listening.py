"""A connection that hears what others notify while nobody uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from crypto_pipeline.database.connection import open_async_connection
from crypto_pipeline.database.failures import database_errors, target_of


class ListeningConnection:
    """One autocommit connection on a channel; for the event loop that opened it.

    Psycopg hears notifications while it waits for an answer, or all the time and then nothing else.
    In between, here, the loop watches the socket: nothing is spent until something comes.

    Args:
        conn: as :func:`open_async_connection` gives it.
        heard: called with the payload of each notification.
    """

    def __init__(self, conn: psycopg.AsyncConnection, heard: Callable[[str], None]) -> None:
        self.lost = False
        self.target = target_of(conn)
        self._conn = conn
        self._heard = heard
        self._using = asyncio.Lock()
        self._fileno = conn.fileno()
        conn.add_notify_handler(lambda notify: heard(notify.payload))

    @classmethod
    async def open(
        cls, url: str, *, channel: str, heard: Callable[[str], None], application_name: str
    ) -> ListeningConnection:
        """Connect and listen.

        Raises:
            DatabaseError: the database cannot be reached.
        """
        conn = await open_async_connection(url, application_name=application_name)
        line = cls(conn, heard)
        try:
            await line.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)), doing="listen")
        except BaseException:
            await line.close()
            raise
        return line

    async def execute(
        self,
        statement: sql.SQL | sql.Composed,
        parameters: Mapping[str, Any] | None = None,
        *,
        doing: str,
    ) -> psycopg.AsyncCursor:
        """Execute one statement; those of several tasks take turns.

        Raises:
            DatabaseError: it failed, or the connection is gone.
        """
        async with self._using:
            try:
                with database_errors(self.target, doing):
                    return await self._conn.execute(statement, parameters)
            finally:
                if self._conn.closed:
                    self._end()
                else:  # psycopg took the socket for its own waiting
                    asyncio.get_running_loop().add_reader(self._fileno, self._on_readable)

    async def close(self) -> None:
        """Stop listening."""
        self._unwatch()
        await self._conn.close()

    def _on_readable(self) -> None:
        try:
            self._conn.pgconn.consume_input()
            while (notify := self._conn.pgconn.notifies()) is not None:
                self._heard(notify.extra.decode())
        except psycopg.OperationalError:
            self._end()  # the next statement says so, by name

    def _end(self) -> None:
        """Nothing will be heard from now on."""
        self.lost = True
        self._unwatch()

    def _unwatch(self) -> None:
        if self._fileno >= 0:
            asyncio.get_running_loop().remove_reader(self._fileno)
            self._fileno = -1
