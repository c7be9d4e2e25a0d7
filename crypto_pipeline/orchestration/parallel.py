"""Partitions of a run, several at once, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from queue import SimpleQueue
from typing import Final, TypeVar

from crypto_pipeline.orchestration.partitions import Partition

Result = TypeVar("Result")

#: While one waits for the database or the disk, another computes; a third gains nothing. So many
#: partitions are in memory at once, however many a run has.
THREADS: Final = 2


def in_threads(
    partitions: Sequence[Partition],
    worker: Callable[[], AbstractContextManager[Callable[[Partition], Result]]],
    *,
    known: Mapping[Partition, Result] | None = None,
) -> Iterator[tuple[Partition, Result]]:
    """Each partition and what a worker made of it, in order.

    Args:
        partitions: a single one is worked on in this thread.
        known: results that are there already; these come first, and nothing is opened for them.
        worker: opens what one thread needs, such as a connection, and gives what it does with a
            partition. Closed at the end, in this thread.

    Raises:
        Exception: what a worker raised, once the partitions under way are done; no other is begun.
    """
    if known:
        yield from known.items()
        partitions = [partition for partition in partitions if partition not in known]
    number = min(THREADS, len(partitions))
    idle: SimpleQueue[Callable[[Partition], Result]] = SimpleQueue()

    def work(partition: Partition) -> Result:
        does = idle.get()
        try:
            return does(partition)
        finally:
            idle.put(does)

    with ExitStack() as stack:
        for _ in range(number):
            idle.put(stack.enter_context(worker()))
        if number <= 1:
            for partition in partitions:
                yield partition, work(partition)
            return
        pool = ThreadPoolExecutor(number, thread_name_prefix="partitions")
        under_way: deque[tuple[Partition, Future[Result]]] = deque()
        try:
            for partition in partitions:
                if len(under_way) == number:
                    first, future = under_way.popleft()
                    yield first, future.result()
                under_way.append((partition, pool.submit(work, partition)))
            for first, future in under_way:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
