"""The end of a process that runs something for Dagster: how it is asked for, and how it comes."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn, Self


def leave(status: int) -> NoReturn:
    """End this process without taking apart what it holds: the system does that faster.

    It is most of a second with all of Dagster in memory. In a forked process it took more than half of
    a minute run's CPU: each object that is freed is a page shared with the parent, to copy first.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as multiprocessing's forks do
        atexit._run_exitfuncs()  # noqa: SLF001 - among them the flushing of logs
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


class Interrupts:
    """Which signal asked this process to end, whatever became of it.

    Dagster has handlers of its own while a run is executed: of a Ctrl-C, or a SIGTERM, nothing is left
    but a failed step, or nothing at all. Python writes each signal that has a handler to a pipe, too.
    """

    def __enter__(self) -> Self:
        self._number: int | None = None
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)

    @property
    def number(self) -> int | None:
        """The first that came; None if none did."""
        with suppress(BlockingIOError):
            for number in os.read(self._read, 1_024):
                if self._number is None and number in {signal.SIGINT, signal.SIGTERM}:
                    self._number = number
        return self._number
