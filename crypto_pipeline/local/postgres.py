"""One PostgreSQL per home, started by the first process that uses it and stopped by the last.

Every user of a home holds a shared lock on ``users.lock`` that the kernel frees however the process
ends, so nobody counts and nobody is counted after a ``kill -9``. Starting and stopping happen under
``start.lock``. A server that a killed user left behind is attached to by the next one.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local.cluster import USER, Cluster
from crypto_pipeline.local.processes import LOOPBACK, FileLock, held
from crypto_pipeline.local.server import Running, Server
from crypto_pipeline.local.timescaledb import (
    FETCH_SECONDS,
    TimescaleFiles,
    TimescaleUnavailable,
    find_timescaledb,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

DATABASE = "crypto_pipeline"
DAGSTER_DATABASE = "dagster"
START_LOCK_SECONDS = FETCH_SECONDS + 180.0
ATTACH_SECONDS = 5.0
CONNECT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """How to reach a server.

    Attributes:
        timescaledb: version of the extension in the database ``crypto_pipeline``; None without it.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    timescaledb: str | None = None

    def url(self, database: str) -> str:
        """URL of a database, as psql takes it."""
        return (
            f"postgresql://{self.user}:{quote(self.password)}@{self.host}:{self.port}/"
            f"{quote(database, safe='')}"
        )


class LocalPostgres:
    """One PostgreSQL under a home directory, shared by all processes that use that home.

    Args:
        home: the data lies in ``home/postgres``, the log in ``home/logs/postgres.log``.
        cache: where TimescaleDB is kept for every home of this machine.
        log: called with the sentences a user should read.
        find: finds TimescaleDB, or raises ``TimescaleUnavailable``.
    """

    def __init__(
        self,
        home: Path,
        *,
        cache: Path | None = None,
        log: Callable[[str], None] = lambda _: None,
        find: Callable[[Path], TimescaleFiles] = find_timescaledb,
    ) -> None:
        self._cluster = Cluster(home.resolve())
        self._server = Server(self._cluster)
        self._cache = (cache or Path.home() / ".cache" / "crypto_pipeline").resolve()
        self._log = log
        self._find = find
        self._users: FileLock | None = None

    def __enter__(self) -> ServerInfo:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> ServerInfo:
        """Become a user of the server: attach to it, or start it if nobody runs it.

        A user may call it again to bring back a server that died.
        """
        self._cluster.make_folders()
        with self._starting():
            users = self._users or FileLock(self._cluster.folder / "users.lock")
            if not users.try_acquire(shared=True):
                msg = f"The lock {users.path} is held alone by something else."
                raise LocalServiceError(msg, hint="see which process has it open (lsof).")
            self._users = users
            try:
                return self._attach() or self._start()
            except BaseException:  # also Ctrl-C: who has no server is no user
                self._leave()
                raise

    def release(self) -> None:
        """Stop using the server; the last user stops it."""
        if not self._cluster.folder.exists():  # the home was removed under the server
            self._server.end_unhoused()
            self._users = None
            return
        with self._starting():
            self._leave()

    def _leave(self) -> None:
        """Give up our place under the start lock, and stop the server if it was the last one."""
        users, self._users = self._users, None
        if users is None:
            return
        with held(users):
            if users.try_acquire():
                self._server.stop()

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Alone among the processes that start and stop this server."""
        with held(FileLock(self._cluster.folder / "start.lock")) as lock:
            try:
                alone = lock.acquire(timeout=START_LOCK_SECONDS, waiting=self._say_waiting)
            except OSError as error:
                msg = f"The local database in {self._cluster.home} cannot be locked: {error}."
                raise LocalServiceError(
                    msg, hint="run as the user who made it, or set CRYPTO_PIPELINE_HOME elsewhere."
                ) from error
            if not alone:
                msg = f"Another process has been starting the database in {self._cluster.home}."
                raise LocalServiceError(
                    msg, hint=f"see what holds {lock.path} (lsof).", rerun_helps=True
                )
            yield

    def _say_waiting(self) -> None:
        self._log("Waiting for another process that starts or stops the local database.")

    def _attach(self) -> ServerInfo | None:
        """Use the server that runs; one that is just dying, or restarting, is given a moment."""
        deadline = time.monotonic() + ATTACH_SECONDS
        while (running := self._server.find()) is not None:
            try:
                return self._prepare(running)
            except LocalServiceError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        return None

    def _start(self) -> ServerInfo:
        if self._cluster.exists:
            self._cluster.check_version()
        else:
            self._cluster.forget()
        files = self._find_timescaledb()
        try:
            running = self._server.start(files)
        except LocalServiceError as error:
            if files is None or self._cluster.remembered.timescaledb:
                raise
            self._log(
                f"Running on plain PostgreSQL, as it does not start with TimescaleDB: {error}"
            )
            running = self._server.start(None)
        self._cluster.remember(port=running.port)
        return self._prepare(running)

    def _find_timescaledb(self) -> TimescaleFiles | None:
        try:
            return self._find(self._cache)
        except TimescaleUnavailable as reason:
            needed = self._cluster.remembered.timescaledb
            if needed is None:
                self._log(f"Running on plain PostgreSQL, without TimescaleDB: {reason}.")
                return None
            msg = (
                f"The database in {self._cluster.folder} was made with TimescaleDB {needed}, which "
                f"is neither in the cache {self._cache} nor to be had: {reason}."
            )
            raise LocalServiceError(
                msg,
                hint="restore the cache or the network, or remove that folder to start afresh.",
                rerun_helps=True,
            ) from reason

    def _prepare(self, running: Running) -> ServerInfo:
        """Databases and extension, also where a killed user had not come to it."""
        info = ServerInfo(
            host=LOOPBACK, port=running.port, user=USER, password=self._cluster.password()
        )
        try:
            with _connect(info, "postgres") as connection:
                rows = connection.execute("SELECT datname FROM pg_database").fetchall()
                for name in {DATABASE, DAGSTER_DATABASE} - {row[0] for row in rows}:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            return replace(info, timescaledb=self._ensure_extension(info))
        except psycopg.Error as error:
            msg = (
                f"The local database (process {running.pid}, port {running.port}, "
                f"{self._cluster.data}) refuses to be set up: {error}."
            )
            raise LocalServiceError(
                msg, hint=f"see {self._cluster.log}.", rerun_helps=True
            ) from error

    def _ensure_extension(self, info: ServerInfo) -> str | None:
        """Make the extension, or bring it to the version of the library; None if there is none."""
        with _connect(info, DATABASE) as connection:
            row = connection.execute(
                "SELECT default_version, installed_version FROM pg_available_extensions "
                "WHERE name = 'timescaledb'"
            ).fetchone()
            if row is None:
                return None
            available, installed = str(row[0]), row[1]
            if installed == available:
                return available
            # Before the fact: data that may need the extension must never be served without it.
            self._cluster.remember(timescaledb=available)
            if installed is None:
                connection.execute("CREATE EXTENSION timescaledb")
                return available
        with _connect(info, DATABASE) as connection:  # an update must be a session's first command
            connection.execute("ALTER EXTENSION timescaledb UPDATE")
            return available


def _connect(info: ServerInfo, database: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(
        info.url(database),
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        sslmode="disable",
        gssencmode="disable",
        application_name="crypto-pipeline local",
    )
