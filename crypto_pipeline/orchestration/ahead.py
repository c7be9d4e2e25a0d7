"""What a range run did of its later steps while the exchange was still asked for other days.

Dagster begins a step when the one before has ended, so a range run would ask for a month, then validate
a month, then store it: the network idle while the processor works, and the other way round. So threads
take each partition all the way as soon as its answers are complete (:mod:`.onward`), and the later
steps take what was done, and wait for what is still under way: the last day is stored while Dagster ends
the step that collected it. They do it themselves wherever nothing was done, it failed, or the archive
changed since.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final
from weakref import WeakSet

from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration.parallel import THREADS
from crypto_pipeline.orchestration.partitions import Partition

#: The steps whose work can be done ahead, as Dagster names them.
RAW_CHECKS: Final = "raw_checks"
VALIDATED: Final = "validated_ohlcv"
VALIDATED_CHECKS: Final = "validated_checks"
STORED: Final = "timescale_candles"
STORED_CHECKS: Final = "timescale_checks"

#: Runs of one process whose results wait for their steps: more than a process ever executes at once.
_RUNS: Final = 4

#: Partitions that wait in memory to be worked on; of others the file is read again.
_AT_HAND: Final = 3


@dataclass
class _Run:
    """What was done of a run and nobody took yet, and what is under way."""

    results: dict[tuple[str, Partition], tuple[Any, Callable[[], bool]]] = field(
        default_factory=dict
    )
    under_way: dict[Partition, Future[None]] = field(default_factory=dict)

    def says(self, step: str, partition: Partition) -> bool:
        """Whether it is known if something was done of a partition."""
        future = self.under_way.get(partition)
        return (step, partition) in self.results or future is None or future.done()


class DoneAhead:
    """Results by run, step and partition, each for as long as it still stands."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._changed = threading.Condition()
        _EVERYWHERE.add(self)

    def begun(self, run_id: str, partition: Partition, future: Future[None]) -> None:
        """Let those who want results of this partition wait for this."""
        with self._changed:
            self._run(run_id).under_way[partition] = future
        future.add_done_callback(self._ended)

    def keep(
        self, run_id: str, step: str, partition: Partition, result: Any, stands: Callable[[], bool]
    ) -> None:
        """Keep what a step would make of a partition; ``stands`` is asked when it is taken."""
        with self._changed:
            self._run(run_id).results[step, partition] = result, stands
            self._changed.notify_all()

    def take(self, run_id: str, step: str, partitions: Sequence[Partition]) -> dict[Partition, Any]:
        """What was done of the partitions and still stands; each once. Waits for what is under way.

        A run that is stopped meanwhile begins no other partition.
        """
        taken: dict[Partition, tuple[Any, Callable[[], bool]]] = {}
        with self._changed:
            run = self._runs.get(run_id, _Run())
            for partition in partitions:
                try:
                    self._changed.wait_for(partial(run.says, step, partition))
                except BaseException:
                    _cancel(run)
                    raise
                if (step, partition) in run.results:
                    taken[partition] = run.results.pop((step, partition))
            if not run.results and all(future.done() for future in run.under_way.values()):
                self._runs.pop(run_id, None)
        return {partition: result for partition, (result, stands) in taken.items() if stands()}

    def stop(self) -> None:
        """Begin nothing more."""
        with self._changed:
            for run in self._runs.values():
                _cancel(run)

    def _run(self, run_id: str) -> _Run:
        while run_id not in self._runs and len(self._runs) >= _RUNS:
            del self._runs[next(iter(self._runs))]
        return self._runs.setdefault(run_id, _Run())

    def _ended(self, future: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()


#: Of this process, whose runs end one by one.
_EVERYWHERE: Final[WeakSet[DoneAhead]] = WeakSet()


def nothing_more() -> None:
    """What a run that ends, however it ends, has not begun is not begun any more."""
    for done in list(_EVERYWHERE):
        done.stop()


def _cancel(run: _Run) -> None:
    for future in run.under_way.values():
        future.cancel()


#: What one thread does with a partition, given what the archive holds of it, if that is at hand.
Work = Callable[[Partition, RawPartition | None], None]


def _has_failed(future: Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


class Background:
    """Works on partitions in threads, beside the caller.

    Args:
        opened: opens what one thread needs.
        failed: told the first error, once all has ended, in whatever thread that is.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Work]],
        *,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._opened = opened
        self._failed = failed
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
        self._begun: list[Future[None]] = []
        self._at_hand: dict[Partition, RawPartition | None] = {}
        self._idle: SimpleQueue[Work] = SimpleQueue()
        self._ending = threading.Lock()
        self._ended = False

    def submit(self, partition: Partition, known: RawPartition | None) -> Future[None]:
        """Let a partition be worked on."""
        if len(self._at_hand) < _AT_HAND:
            self._at_hand[partition] = known
        future = self._pool.submit(self._do, partition)
        self._begun.append(future)
        return future

    def leave(self) -> None:
        """No other partition comes; those that did are worked on while the caller goes on."""
        self._pool.shutdown(wait=False)
        for future in self._begun:
            future.add_done_callback(lambda future: self._end_if_done())
        self._end_if_done()

    def stop(self) -> None:
        """Wait for those under way; no other is begun."""
        self._pool.shutdown(cancel_futures=True)
        self._end_if_done()

    def _end_if_done(self) -> None:
        with self._ending:
            if self._ended or not all(future.done() for future in self._begun):
                return
            self._ended = True
        with self._stack:  # closed at the end
            for future in self._begun:
                if _has_failed(future) and (error := future.exception()) is not None:
                    self._failed(error)
                    break

    def _do(self, partition: Partition) -> None:
        known = self._at_hand.pop(partition, None)
        if any(map(_has_failed, self._begun)):
            return  # the steps find out by themselves, and say so
        try:
            work = self._idle.get_nowait()
        except Empty:
            work = self._stack.enter_context(self._opened())
        try:
            work(partition, known)
        finally:
            self._idle.put(work)


@contextmanager
def in_background(
    done: DoneAhead,
    run_id: str,
    opened: Callable[[], AbstractContextManager[Work]],
    *,
    failed: Callable[[BaseException], None],
) -> Iterator[Work]:
    """Gives a function that lets a partition of a run be worked on in another thread.

    At the end they go on, and who takes results from ``done`` waits for them; after an error of the
    caller those under way are waited for, and no other is begun. After a failure no other is begun,
    either; it is told to ``failed`` and not raised, for whoever needs the work does it again.
    """
    background = Background(opened, failed=failed)

    def submit(partition: Partition, known: RawPartition | None) -> None:
        done.begun(run_id, partition, background.submit(partition, known))

    try:
        yield submit
    except BaseException:
        background.stop()
        raise
    background.leave()
