"""What a range run did of its later steps while the exchange was still asked for other days.

Dagster begins a step when the one before has ended, so a range run would ask for a month, then validate
a month, then store it: the network idle while the processor works, and the other way round. So threads
take each partition all the way as soon as its answers are complete (:mod:`.onward`), and the later
steps take what was done. They do it themselves wherever nothing was done, it failed, or the archive
changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

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


@dataclass(frozen=True)
class DoneAhead:
    """Results by run, step and partition, each for as long as it still stands."""

    _runs: dict[str, dict[tuple[str, Partition], tuple[Any, Callable[[], bool]]]] = field(
        default_factory=dict, repr=False
    )

    def keep(
        self, run_id: str, step: str, partition: Partition, result: Any, stands: Callable[[], bool]
    ) -> None:
        """Keep what a step would make of a partition; ``stands`` is asked when it is taken."""
        while run_id not in self._runs and len(self._runs) >= _RUNS:
            del self._runs[next(iter(self._runs))]
        self._runs.setdefault(run_id, {})[step, partition] = result, stands

    def take(self, run_id: str, step: str, partitions: Sequence[Partition]) -> dict[Partition, Any]:
        """What was done of the partitions and still stands; each once."""
        results = self._runs.get(run_id, {})
        found: dict[Partition, Any] = {}
        for partition in partitions:
            result, stands = results.pop((step, partition), (None, None))
            if stands is not None and stands():
                found[partition] = result
        if not results:
            self._runs.pop(run_id, None)
        return found


#: What one thread does with a partition, given what the archive holds of it, if that is at hand.
Work = Callable[[Partition, RawPartition | None], None]


class Background:
    """Works on partitions in threads, beside the caller."""

    def __init__(self, opened: Callable[[], AbstractContextManager[Work]]) -> None:
        self._opened = opened
        self._stack = ExitStack()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ahead")
        self._begun: list[Future[None]] = []
        self._at_hand: dict[Partition, RawPartition | None] = {}
        self._idle: SimpleQueue[Work] = SimpleQueue()
        self.failure: BaseException | None = None

    def submit(self, partition: Partition, known: RawPartition | None) -> None:
        """Let a partition be worked on."""
        if len(self._at_hand) < _AT_HAND:
            self._at_hand[partition] = known
        self._begun.append(self._pool.submit(self._do, partition))

    def close(self, *, finish: bool) -> None:
        """Wait for all, or for those under way."""
        try:
            self._pool.shutdown(cancel_futures=not finish)
        except BaseException:  # the run is stopped while it waits
            self._pool.shutdown(cancel_futures=True)
            raise
        finally:
            self._stack.close()
        errors = (future.exception() for future in self._begun if not future.cancelled())
        self.failure = next((error for error in errors if error is not None), None)

    def _do(self, partition: Partition) -> None:
        known = self._at_hand.pop(partition, None)
        if any(done.done() and done.exception() for done in self._begun):
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
    opened: Callable[[], AbstractContextManager[Work]],
    *,
    failed: Callable[[BaseException], None],
) -> Iterator[Work]:
    """Gives a function that lets a partition be worked on in another thread.

    At the end all are waited for, or after an error of the caller those under way. After a failure no
    other is begun; it is told to ``failed`` and not raised, for whoever needs the work does it again.
    """
    background, finish = Background(opened), False
    try:
        yield background.submit
        finish = True
    finally:
        background.close(finish=finish)
        if background.failure is not None:
            failed(background.failure)
