"""Work that is done ahead of its step: taken once, while it stands; a failure is nobody's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date, timedelta

import pytest

from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration import ahead
from crypto_pipeline.orchestration.ahead import VALIDATED, DoneAhead, in_background
from crypto_pipeline.orchestration.parallel import THREADS
from crypto_pipeline.orchestration.partitions import Partition

DAYS = [Partition("a", date(2024, 1, 1) + timedelta(n)) for n in range(5)]
FIRST = DAYS[0]


def test_what_was_done_is_taken_once_and_by_its_run_only() -> None:
    done = DoneAhead()
    done.keep("run", VALIDATED, FIRST, "facts", lambda: True)
    assert done.take("another", VALIDATED, [FIRST]) == {}
    assert done.take("run", "another step", [FIRST]) == {}
    assert done.take("run", VALIDATED, DAYS) == {FIRST: "facts"}
    assert done.take("run", VALIDATED, [FIRST]) == {}


def test_what_does_not_stand_any_more_is_done_again() -> None:
    """Another run wrote the partition since, or its own later days proved more of it."""
    done = DoneAhead()
    done.keep("run", VALIDATED, FIRST, "facts", lambda: False)
    assert done.take("run", VALIDATED, [FIRST]) == {}


def test_runs_that_never_took_theirs_are_forgotten() -> None:
    done = DoneAhead()
    for number in range(100):
        done.keep(str(number), VALIDATED, FIRST, number, lambda: True)
    assert done.take("0", VALIDATED, [FIRST]) == {}
    assert done.take("99", VALIDATED, DAYS) == {FIRST: 99}
    assert len(done._runs) < 10


class Work:
    """Says what it did; may fail, and may be held."""

    def __init__(self, fails_at: Partition | None = None) -> None:
        self.did: list[Partition] = []
        self.known: list[RawPartition | None] = []
        self.told: list[BaseException] = []
        self.was_opened = self.closed = 0
        self.may_go = threading.Event()
        self.may_go.set()
        self._fails_at = fails_at

    @contextmanager
    def opened(self) -> Iterator[ahead.Work]:
        self.was_opened += 1
        yield self._do
        self.closed += 1

    def _do(self, partition: Partition, known: RawPartition | None) -> None:
        self.did.append(partition)
        self.known.append(known)
        assert self.may_go.wait(10)
        time.sleep(0.01)
        if partition == self._fails_at:
            raise ValueError(partition.key)


def submit_all(submit: ahead.Work, work: Work) -> None:
    """All days, and one of them is under way."""
    for partition in DAYS:
        submit(partition, None)
    while not work.did:
        time.sleep(0.01)


def test_partitions_are_worked_on_beside_the_caller_and_waited_for() -> None:
    work = Work()
    work.may_go.clear()
    with in_background(work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, None)
        threading.Timer(0.1, work.may_go.set).start()
    assert sorted(work.did) == DAYS
    assert work.closed == work.was_opened <= THREADS
    assert work.told == []


def test_a_caller_that_fails_waits_for_those_under_way_only() -> None:
    """A run that is stopped ends soon, and nothing of it goes on."""
    work = Work()
    work.may_go.clear()

    def stopped() -> None:
        with in_background(work.opened, failed=work.told.append) as submit:
            submit_all(submit, work)
            threading.Timer(0.2, work.may_go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert len(work.did) <= THREADS
    assert work.closed == work.was_opened


def test_few_partitions_wait_in_memory() -> None:
    """A run whose storing is slower than its asking must not keep a month in memory."""
    work = Work()
    work.may_go.clear()
    with in_background(work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, RawPartition())
        work.may_go.set()
    assert sum(known is not None for known in work.known) in range(3, 3 + THREADS + 1)


def test_after_a_failure_nothing_is_begun_and_nothing_is_raised() -> None:
    """With the database away each would wait for it; the steps say what is wrong themselves."""
    work = Work(fails_at=DAYS[1])
    with in_background(work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, None)
    assert len(work.did) < len(DAYS)
    assert [str(error) for error in work.told] == [DAYS[1].key]


def test_what_cannot_be_opened_is_told() -> None:
    told: list[BaseException] = []

    @contextmanager
    def opened() -> Iterator[ahead.Work]:
        raise ConnectionError("away")
        yield

    with in_background(opened, failed=told.append) as submit:
        submit(FIRST, None)
    assert [str(error) for error in told] == ["away"]


def test_a_run_that_is_stopped_while_it_waits_leaves_the_rest_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dagster stops a run by an exception wherever its main thread is; here: at the end."""
    work = Work()
    work.may_go.clear()
    pool: list[ThreadPoolExecutor] = []

    def shutdown(self: ThreadPoolExecutor, **named: bool) -> None:
        pool.append(self)
        if len(pool) == 1:
            raise KeyboardInterrupt
        work.may_go.set()
        real(self, **named)

    def stopped() -> None:
        with in_background(work.opened, failed=work.told.append) as submit:
            submit_all(submit, work)

    real = ThreadPoolExecutor.shutdown
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert len(work.did) <= THREADS + 1
    assert work.closed == work.was_opened
