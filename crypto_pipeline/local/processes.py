"""Small helpers for child processes: locks that die with their holder, detached children, log tails.

What belongs here knows nothing of PostgreSQL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from crypto_pipeline.local.privileges import Identity

POLL_SECONDS = 0.01
LOOPBACK = "127.0.0.1"


class FileLock:
    """``flock`` on a file, freed by the kernel however its holder ends.

    The lock belongs to the open file, not to the process: a child that inherits the descriptor
    holds it too, for as long as it lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def try_acquire(self, *, shared: bool = False) -> bool:
        """Take the lock, or change the one held; False if others stand against it."""
        while True:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), self.path.stat()):
                    return True
            self.close()  # the file was removed under us (rm -rf of the home): lock the new one

    def acquire(self, *, timeout: float, waiting: Callable[[], None] | None = None) -> bool:
        """Take the lock alone, waiting for it; ``waiting`` is called once if that is needed."""
        deadline = time.monotonic() + timeout
        while not self.try_acquire():
            if waiting is not None:
                waiting()
                waiting = None
            if time.monotonic() > deadline:
                self.close()
                return False
            time.sleep(POLL_SECONDS)
        return True

    def fileno(self) -> int:
        """Descriptor of the open file, to be inherited by a child."""
        if self._fd is None:
            msg = f"{self.path} is not open"
            raise ValueError(msg)
        return self._fd

    def close(self) -> None:
        """Let go; children that inherited the descriptor keep the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@contextlib.contextmanager
def held(lock: FileLock) -> Iterator[FileLock]:
    """Close the lock at the end, whatever happens."""
    try:
        yield lock
    finally:
        lock.close()


class DetachedChild:
    """A child in a session of its own: Ctrl-C in our terminal does not reach it, it outlives us.

    A thread reaps it, so that it never stands as a zombie for other processes that wait for its
    end, and so that ``Popen`` does not warn when we end first.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        identity: Identity,
        env: Mapping[str, str],
        output: Path,
        inherit: Sequence[int],
    ) -> None:
        with output.open("ab") as sink:
            self._process = identity.popen(
                argv, env=env, stdout=sink, stderr=sink, pass_fds=inherit
            )
        self.pid = self._process.pid
        threading.Thread(target=self._process.wait, name=f"reap-{self.pid}", daemon=True).start()

    @property
    def returncode(self) -> int | None:
        """Exit status once it has ended."""
        return self._process.returncode


def processes_where(matches: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Living processes whose command line ``matches`` says yes to."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE and matches(process.cmdline()):
                found.append(process)
    return found


def wait_until(done: Callable[[], bool], *, timeout: float) -> bool:
    """Poll ``done`` until it says yes; False when time is up and it still says no."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            return done()  # we may have slept for longer
        time.sleep(POLL_SECONDS)
    return True


def tail(path: Path, *, since: int = 0, lines: int = 15) -> str:
    """Last lines of a log written after byte ``since``, for an error message."""
    try:
        with path.open("rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:])


def free_port() -> int:
    """A port of the loopback address nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on that port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
