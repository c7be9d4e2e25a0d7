"""Child processes a command runs and answers for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, Self

import psutil

from crypto_pipeline.errors import LocalServiceError

_STOP_SECONDS: Final = 20.0


def run_in_foreground(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end; its exit status, 128 + n if signal n ended it.

    Ctrl-C reaches the child through the terminal; SIGTERM is passed on. We stay until it has ended.

    Raises:
        LocalServiceError: there is no such program.
    """
    argv = [_program(command[0], environment), *command[1:]]
    with _Passing() as passing, subprocess.Popen(argv, env=environment) as child:
        passing.to(child)
        status = child.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def prepared(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Callable[[Mapping[str, str]], int]]:
    """A program that imports what it needs while we still look after other things.

    It waits on its standard input for a JSON object, environment variables, and ends where there is none.
    Until then a Ctrl-C is ours; it finds SIGINT blocked, and unblocks it when it begins.

    Gives a function that lets it begin with these variables, in the foreground as
    :func:`run_in_foreground`, and returns its exit status. Without that call it is ended.

    Raises:
        LocalServiceError: there is no such program.
    """
    argv = [_program(command[0], environment), *command[1:]]
    with subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.PIPE,
        preexec_fn=_block_interrupt,  # noqa: PLW1509 - sets the mask, no lock is taken
    ) as child:

        def begin(variables: Mapping[str, str]) -> int:
            with _Passing() as passing:
                passing.to(child)
                child.communicate(json.dumps(dict(variables)).encode())
            return child.returncode if child.returncode >= 0 else 128 - child.returncode

        try:
            yield begin
        finally:
            child.kill()  # nothing to one that has ended


@contextmanager
def running_group(
    command: Sequence[str], environment: Mapping[str, str], *, output: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that has children of its own, and end all of them afterwards.

    It gets a session of its own, so Ctrl-C in our terminal reaches only us and we stop it in order;
    and SIGINT as it should be: a background job of a script inherits it ignored, and ``dagster dev``
    then never stops.

    Args:
        command: program and arguments.
        environment: its whole environment.
        output: file its output is added to; None for ours.
    """
    sink = None if output is None else output.open("ab")
    try:
        with subprocess.Popen(
            [_program(command[0], environment), *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_default_interrupt,  # noqa: PLW1509 - sets a signal handler, no lock is taken
        ) as child:
            try:
                yield child
            finally:
                _end_group(child)
    finally:
        if sink is not None:
            sink.close()


def shorten_log(log: Path, *, limit: int) -> None:
    """Move what :func:`running_group` wrote to ``log`` into ``log.1``, once it is ``limit`` bytes.

    The program need not know: it appends to the emptied file. A line of this very moment may be
    lost; one old log is kept.
    """
    if log.exists() and log.stat().st_size > limit:
        shutil.copyfile(log, log.with_name(f"{log.name}.1"))
        os.truncate(log, 0)


def _block_interrupt() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _program(name: str, environment: Mapping[str, str]) -> str:
    found = shutil.which(name, path=environment.get("PATH"))
    if found is None:
        raise LocalServiceError(
            f"There is no program {name!r} on the PATH.", hint="see to its name."
        )
    return found


class _Passing:
    """Passes SIGTERM and SIGHUP on to a child; Ctrl-C reaches it through the terminal.

    In force before the child starts: a signal in between would end us, and leave it behind.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._pass_on)
            for number in (signal.SIGTERM, signal.SIGHUP)
        }
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def to(self, child: subprocess.Popen[bytes]) -> None:
        """The child has started: it gets what came meanwhile, and what comes from now on."""
        self._child = child
        while self._early:
            self._pass_on(self._early.pop(), None)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._child is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._child.send_signal(number)


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """Ask the leader to stop, then its descendants, then end whatever is left of the session."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(leader.pid).children(recursive=True)
        if leader.poll() is None:
            leader.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                leader.wait(_STOP_SECONDS)
        left = [process for process in family if process.is_running()]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(left, timeout=5)
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
