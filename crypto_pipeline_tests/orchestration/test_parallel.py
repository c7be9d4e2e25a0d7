"""Partitions worked on several at once: results in order, a bounded window, a clean end."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import pytest

from crypto_pipeline.orchestration.parallel import THREADS, in_threads
from crypto_pipeline.orchestration.partitions import Partition

PARTITIONS = [Partition("a", date(2024, 1, 1) + timedelta(n)) for n in range(20)]


class Work:
    """Counts what is open and under way; later partitions are done sooner."""

    def __init__(self, fails_at: Partition | None = None) -> None:
        self.fails_at = fails_at
        self.begun: list[Partition] = []
        self.opened = self.closed = self.now = self.most = 0
        self._lock = threading.Lock()

    @contextmanager
    def worker(self) -> Iterator[Callable[[Partition], int]]:
        self.opened += 1
        yield self.do
        self.closed += 1

    def do(self, partition: Partition) -> int:
        with self._lock:
            self.begun.append(partition)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.005 * (20 - partition.day.day) / 20)
        with self._lock:
            self.now -= 1
        if partition == self.fails_at:
            raise ValueError(partition.key)
        return partition.day.day


def test_results_come_in_order_whatever_is_done_first() -> None:
    work = Work()
    assert list(in_threads(PARTITIONS, work.worker)) == [(p, p.day.day) for p in PARTITIONS]
    assert (work.opened, work.closed) == (THREADS, THREADS)


def test_what_is_known_comes_first_and_is_not_made_again() -> None:
    work = Work()
    known = dict.fromkeys(PARTITIONS[5:15], -1)
    results = list(in_threads(PARTITIONS, work.worker, known=known))
    assert results[:10] == list(known.items())
    assert [partition for partition, _ in results[10:]] == PARTITIONS[:5] + PARTITIONS[15:]
    assert set(work.begun) == set(PARTITIONS) - known.keys()
    idle = Work()
    assert list(in_threads(list(known), idle.worker, known=known)) == list(known.items())
    assert idle.opened == 0


def test_no_more_partitions_are_in_memory_than_threads() -> None:
    """A range run's memory must not grow with its days: nobody runs ahead of who takes results."""
    work = Work()
    results = in_threads(PARTITIONS, work.worker)
    next(results)
    time.sleep(0.1)
    assert len(work.begun) <= THREADS + 1
    assert len(list(results)) == len(PARTITIONS) - 1
    assert work.most <= THREADS


def test_a_single_partition_needs_no_thread() -> None:
    """The minute run: no thread is started, one connection opened."""
    threads = []

    @contextmanager
    def worker() -> Iterator[Callable[[Partition], None]]:
        yield lambda partition: threads.append(threading.current_thread())

    list(in_threads(PARTITIONS[:1], worker))
    assert threads == [threading.main_thread()]
    assert list(in_threads([], worker)) == []


@pytest.mark.parametrize("at", [0, 7, 19])
def test_an_error_ends_it_once_what_is_under_way_is_done(at: int) -> None:
    """The error of a partition comes in its place; what goes on holds locks and connections."""
    work = Work(fails_at=PARTITIONS[at])
    done = []

    def take() -> None:
        for partition, _ in in_threads(PARTITIONS, work.worker):
            done.append(partition)

    with pytest.raises(ValueError, match=re.escape(PARTITIONS[at].key)):
        take()
    assert done == PARTITIONS[:at]
    assert work.now == 0
    assert len(work.begun) <= at + THREADS
    assert not [t for t in threading.enumerate() if t.name.startswith("partitions")]


def test_who_stops_taking_results_leaves_nothing_behind() -> None:
    """A run that is ended from the UI, in the middle."""
    work = Work()
    results = in_threads(PARTITIONS, work.worker)
    next(results)
    results.close()
    assert work.now == 0
    assert len(work.begun) <= THREADS + 1
