"""The server's process: whether it runs, starting it, stopping it, cleaning up after a crash.

Who may do so, and when, is decided in ``postgres``, which calls this with its start lock held.

Every process of the server inherits a lock on ``server.lock``. So "does anything of it live?" has
an exact answer, which no process id has: ids are reused after a reboot, backends outlive a killed
postmaster, and another container's processes cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local.cluster import installation
from crypto_pipeline.local.privileges import choose_identity
from crypto_pipeline.local.processes import (
    DetachedChild,
    FileLock,
    free_port,
    held,
    port_is_free,
    processes_where,
    tail,
    wait_until,
)
from crypto_pipeline.local.timescaledb import machine_glibc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crypto_pipeline.local.cluster import Cluster
    from crypto_pipeline.local.timescaledb import TimescaleFiles

READY_SECONDS = 300.0  # recovery after a crash replays up to max_wal_size
FAST_STOP_SECONDS = 60.0
QUIT_STOP_SECONDS = 10.0
KILL_STOP_SECONDS = 5.0
ORPHANS_SECONDS = 5.0
START_ATTEMPTS = 3

CLEAN_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

HINTS = {
    "could not load library": "remove the cache of TimescaleDB, so that it is fetched anew.",
    "No space left": "free disk space, then start again: nothing committed is lost.",
    "could not map anonymous shared memory": "free memory, or give this container more.",
    "Permission denied": "see which path the log names, and who owns it.",
    "in use by": "another server holds the same data: stop it.",
}


class PortTaken(Exception):
    """Somebody took the port between our look and the server's."""


@dataclass(frozen=True)
class Running:
    """A server that accepts connections."""

    pid: int
    port: int


class Server:
    """The process that serves one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._lock_path = cluster.folder / "server.lock"

    def find(self) -> Running | None:
        """The running server, waited for if it is just starting; None if none runs.

        After None nothing of an earlier server is left, neither process nor pid file.
        """
        if self._lives():
            if self._status() != "stopping":
                with contextlib.suppress(PortTaken):  # then it ended, and we may start another
                    return self._wait_ready(self._lives, since=self.cluster.log_size())
            wait_until(lambda: not self._lives(), timeout=FAST_STOP_SECONDS)
        self._end_orphans()
        with self._pid_file_errors():
            self.cluster.pid_file.unlink(missing_ok=True)
        return None

    def start(self, timescaledb: TimescaleFiles | None) -> Running:
        """Start the server, making the data directory at first. Call when ``find`` gave None."""
        self.cluster.rotate_log()
        postgres = installation() / "bin/postgres"
        argv, needs = [str(postgres)], dict[str, str]()
        read = [self.cluster.conf]
        if timescaledb is not None:
            argv, needs = timescaledb.launch(postgres, glibc=machine_glibc())
            read.append(timescaledb.loader_library)
        env = CLEAN_ENVIRONMENT | needs
        port = self.cluster.remembered.port or free_port()
        for _ in range(START_ATTEMPTS):
            if not port_is_free(port):
                port = free_port()
            self.cluster.write_conf(port=port, timescaledb=timescaledb)
            identity = choose_identity(
                owner=self.cluster.owner,
                enter=self.cluster.folder,
                read=read,
                run=[*argv, "--version"],
                env=env,
            )
            if not self.cluster.exists:
                self.cluster.create(identity, env=CLEAN_ENVIRONMENT)
            try:
                with held(FileLock(self._lock_path)) as lock:
                    if not lock.try_acquire():
                        raise self._elsewhere()
                    since = self.cluster.log_size()
                    child = DetachedChild(
                        [*argv, "-D", str(self.cluster.data), "-c", self._conf_argument],
                        identity=identity,
                        env=env,
                        output=self.cluster.log,
                        inherit=[lock.fileno()],
                    )
                return self._wait_started(child, since=since)
            except PortTaken:
                port = free_port()
        msg = f"PostgreSQL found no free port in {START_ATTEMPTS} attempts, the last {port}."
        raise LocalServiceError(msg, hint=f"see {self.cluster.log}.", rerun_helps=True)

    def stop(self) -> None:
        """Stop the server with all that was committed, roughly if it does not listen."""
        for number, patience in (
            (signal.SIGINT, FAST_STOP_SECONDS),  # "fast": clients are cut off, nothing is lost
            (signal.SIGQUIT, QUIT_STOP_SECONDS),  # "immediate": the next start recovers
            (signal.SIGKILL, KILL_STOP_SECONDS),
        ):
            if (postmaster := self._postmaster() or self._unannounced()) is None:
                break
            with contextlib.suppress(psutil.NoSuchProcess):
                postmaster.send_signal(number)
            wait_until(self._lock_is_free, timeout=patience)
        self._end_orphans()

    def end_unhoused(self) -> None:
        """End a server whose files were removed; it would notice by itself within a minute."""
        for process in processes_where(lambda argv: self._conf_argument in argv):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)

    @property
    def _conf_argument(self) -> str:
        """Also what tells this server's postmaster from any other process."""
        return f"config_file={self.cluster.conf}"

    def _wait_started(self, child: DetachedChild, *, since: int) -> Running:
        """Wait for a child of ours; whatever ends the wait also ends the child."""
        try:
            return self._wait_ready(lambda: child.returncode is None, since=since, pid=child.pid)
        except BaseException:  # also Ctrl-C: no server stays that nobody knows of
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGQUIT)
            wait_until(lambda: child.returncode is not None, timeout=QUIT_STOP_SECONDS)
            raise

    def _wait_ready(
        self, alive: Callable[[], bool], *, since: int, pid: int | None = None
    ) -> Running:
        """Wait until the pid file says that connections are accepted."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            lines = self._pid_file_lines()
            if self._status() == "ready" and (pid is None or lines[0].strip() == str(pid)):
                return Running(pid=int(lines[0]), port=int(lines[3]))
            if not alive():
                break
            time.sleep(0.005)
        said = tail(self.cluster.log, since=since)
        if "could not bind" in said and "Address already in use" in said:
            raise PortTaken
        what = "ended" if not alive() else f"was not ready after {READY_SECONDS:.0f} s"
        hint = next((hint for text, hint in HINTS.items() if text in said), "see the log.")
        msg = (
            f"PostgreSQL {what} while starting on {self.cluster.data}. "
            f"Log {self.cluster.log} ends:\n{said}\n"
        )
        raise LocalServiceError(msg, hint=hint)

    def _postmaster(self) -> psutil.Process | None:
        """The process of the pid file, if it is ours: ids are reused after a reboot."""
        lines = self._pid_file_lines()
        with contextlib.suppress(psutil.Error, ValueError, IndexError):
            process = psutil.Process(int(lines[0]))
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and self._conf_argument in process.cmdline()
            ):
                return process
        return None

    def _unannounced(self) -> psutil.Process | None:
        """A postmaster that has not come to writing its pid file: we were interrupted starting it."""
        if self._lock_is_free():
            return None
        return next(iter(processes_where(lambda argv: self._conf_argument in argv)), None)

    def _lives(self) -> bool:
        return self._postmaster() is not None

    def _status(self) -> str:
        """The server's own word on its state: starting, ready, stopping."""
        lines = self._pid_file_lines()
        return lines[7].strip() if len(lines) > 7 else ""

    def _pid_file_lines(self) -> list[str]:
        with self._pid_file_errors():
            try:
                return self.cluster.pid_file.read_text(encoding="utf-8").splitlines()
            except FileNotFoundError:
                return []

    @contextlib.contextmanager
    def _pid_file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            msg = f"The local database in {self.cluster.data} is not ours to start: {error}."
            raise LocalServiceError(
                msg, hint="run as the user who made it, or set CRYPTO_PIPELINE_HOME elsewhere."
            ) from error

    def _end_orphans(self) -> None:
        """End what outlives its postmaster: a new server would find the shared memory in use.

        They notice by themselves, except while they compute. So is a postmaster ended that had not
        yet become one when ``stop`` looked for it.
        """
        if wait_until(self._lock_is_free, timeout=ORPHANS_SECONDS):
            return
        title, owner = f"postgres: {self.cluster.name}: ", self.cluster.owner

        def ours(argv: list[str]) -> bool:
            return self._conf_argument in argv or any(part.startswith(title) for part in argv)

        for process in processes_where(ours):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.uids().real == owner:
                    process.kill()
        if not wait_until(self._lock_is_free, timeout=ORPHANS_SECONDS):
            raise self._elsewhere()

    def _lock_is_free(self) -> bool:
        with held(FileLock(self._lock_path)) as lock:
            return lock.try_acquire()

    def _elsewhere(self) -> LocalServiceError:
        return LocalServiceError(
            f"Another PostgreSQL, not visible from here, serves {self.cluster.data}.",
            hint="stop the container or session that uses this home, or set CRYPTO_PIPELINE_HOME "
            "elsewhere.",
            rerun_helps=True,
        )
