"""Runs in processes of their own, to which something happens at a named moment.

Real processes and real signals: a child, forked from a server that has everything imported, carries
out one run and, at its moment, kills or stops itself, or whom it is told to.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from crypto_pipeline.database import candle_writer, gap_writer
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.lake import storage
from crypto_pipeline.orchestration import io_managers
from crypto_pipeline.orchestration.ledger import LedgerResource
from crypto_pipeline_tests.pipelines import Pipeline

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])

Deed = Callable[[], None]


@dataclass(frozen=True)
class Seam:
    """A call of the program: the ``nth`` one of ``owner.name`` whose arguments fit ``only``."""

    owner: Any
    name: str
    after: bool = False
    nth: int = 1
    only: Callable[..., bool] = field(default=lambda *arguments, **named: True)

    def break_(self, deed: Deed) -> None:
        """Let the deed be done there."""
        genuine, seen = getattr(self.owner, self.name), 0

        def broken(*arguments: Any, **named: Any) -> Any:
            nonlocal seen
            seen += self.only(*arguments, **named)
            due = seen == self.nth and self.only(*arguments, **named)
            if due and not self.after:
                deed()
            result = genuine(*arguments, **named)
            if due and self.after:
                deed()
            return result

        setattr(self.owner, self.name, broken)


@dataclass(frozen=True)
class MidCopy:
    """Between two blocks of a COPY, the first of which is on its way."""

    def break_(self, deed: Deed) -> None:
        """Let the deed be done there."""
        genuine = candle_writer.binary_copy_blocks

        def blocks(*arguments: Any, **named: Any) -> Iterator[bytes]:
            for number, block in enumerate(genuine(*arguments, **named)):
                half = len(block) // 2
                yield block[:half]
                if number == 0:
                    time.sleep(0.05)  # it has come to the server
                    deed()
                yield block[half:]

        candle_writer.binary_copy_blocks = blocks


def _in(zone: str) -> Callable[..., bool]:
    return lambda path, *_, **__: f"/{zone}/" in str(path)


#: In the order of a run. A run over a range looks at its partitions in the ledger first.
MOMENTS: dict[str, Seam | MidCopy] = {
    "before the ledger knows of it": Seam(LedgerResource, "intend"),
    "before the markets are loaded": Seam(ExchangeWrapper, "load_markets"),
    "between two answers": Seam(ExchangeWrapper, "fetch", nth=2),
    "raw file: begun": Seam(storage, "_claim", nth=1),
    "raw file: written, not in place": Seam(Path, "replace", only=_in("raw")),
    "raw file: in place": Seam(Path, "replace", after=True, only=_in("raw")),
    "validated file: written, not in place": Seam(Path, "replace", only=_in("validated")),
    "validated file: in place": Seam(Path, "replace", after=True, only=_in("validated")),
    "before COPY": Seam(candle_writer, "_copy"),
    "in mid COPY": MidCopy(),
    "between COPY and commit": Seam(candle_writer, "_copy", after=True),
    "between candles and their hours": Seam(candle_writer, "put_hours"),
    "after commit": Seam(io_managers, "replace_live_candles"),
    "between candles and ledger": Seam(io_managers, "replace_live_candles", after=True),
    "in the ledger's transaction": Seam(gap_writer, "note_answered"),
    "during the checks": Seam(LedgerResource, "recorded"),
}


def _carry_out(pipeline: Pipeline, run: Mapping[str, Any], moment: str | None, deed: Any) -> None:
    if moment is not None:
        MOMENTS[moment].break_(deed)
    result = pipeline.run(**run)
    os._exit(0 if result.success else 3)


class DyingRun:
    """One run in a child process; ``deed`` is what happens at the moment."""

    def __init__(
        self,
        pipeline: Pipeline,
        *partitions: str,
        moment: str | None = None,
        deed: Deed | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        bare = Pipeline(pipeline.settings, pipeline.simulator)
        run = dict(zip(("first", "last"), partitions, strict=False)) | {
            "may_fail": True,
            "tags": dict(tags or {}),
        }
        self._process = _CONTEXT.Process(  # type: ignore[attr-defined]
            target=_carry_out, args=(bare, run, moment, deed or die)
        )
        self._process.start()
        self.pid: int = self._process.pid

    def wait(self, seconds: float = 60) -> int:
        """Its exit code: 0, 3 for a failed run, minus the signal that killed it."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"the run did not end in {seconds} s")
        return int(code)

    def wait_stopped(self, seconds: float = 60) -> None:
        """Until it has stopped itself."""
        deadline = time.monotonic() + seconds
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


def die() -> None:
    """SIGKILL: no clean-up of any kind."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    """SIGSTOP: as a process that waits for a disk, or a machine that sleeps."""
    os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class Signal:
    """A signal to another process."""

    pid: int
    number: int

    def __call__(self) -> None:
        os.kill(self.pid, self.number)
        time.sleep(0.3)  # it has come


@dataclass(frozen=True)
class KillBackend:
    """SIGKILL to the server's process that serves our COPY."""

    database_url: str

    def __call__(self) -> None:
        from crypto_pipeline.database.connection import connect

        with connect(self.database_url) as conn:
            ((pid,),) = conn.execute(
                "SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%' AND pid <> pg_backend_pid()"
                " AND datname = current_database()"
            ).fetchall()
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)
