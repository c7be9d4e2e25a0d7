"""Work that is done ahead of its step: taken once, while it stands; a failure is nobody's."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from queue import SimpleQueue

import pytest

from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration import ahead
from crypto_pipeline.orchestration.ahead import STORED, VALIDATED, DoneAhead, in_background
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


def test_who_takes_waits_for_what_is_under_way_and_no_longer() -> None:
    """The last day is stored while Dagster ends the step that collected it."""
    done, work = DoneAhead(), Work()
    checked, may_store = threading.Event(), threading.Event()

    @contextmanager
    def opened() -> Iterator[ahead.Work]:
        def both_steps(partition: Partition, known: RawPartition | None) -> None:
            done.keep("run", VALIDATED, partition, "facts", lambda: True)
            checked.set()
            assert may_store.wait(10)
            done.keep("run", STORED, partition, "rows", lambda: True)

        yield both_steps

    with in_background(done, "run", opened, failed=work.told.append) as submit:
        submit(FIRST, None)
    assert done.take("run", VALIDATED, DAYS) == {FIRST: "facts"}
    assert done.take("another", STORED, DAYS) == {}
    threading.Timer(0.1, may_store.set).start()
    assert done.take("run", STORED, DAYS) == {FIRST: "rows"}
    assert work.told == []


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
        self._failed = threading.Event()

    @contextmanager
    def opened(self) -> Iterator[ahead.Work]:
        self.was_opened += 1
        yield self._do
        self.closed += 1

    def wait_closed(self) -> None:
        """What was opened is closed a moment after the last result is there."""
        for _ in range(500):
            if self.closed == self.was_opened:
                return
            time.sleep(0.01)
        raise AssertionError(f"{self.closed} of {self.was_opened} are closed")

    def _do(self, partition: Partition, known: RawPartition | None) -> None:
        self.did.append(partition)
        self.known.append(known)
        assert self.may_go.wait(10)
        if partition == self._fails_at:
            self._failed.set()
            raise ValueError(partition.key)
        if self._fails_at is not None:
            assert self._failed.wait(10)
        time.sleep(0.01 if self._fails_at is None else 0.2)  # until it is known


def wait_for(done: DoneAhead) -> None:
    """As the first step that wants something does."""
    assert done.take("run", VALIDATED, DAYS) == {}


def submit_all(submit: ahead.Work, work: Work) -> None:
    """All days, and one of them is under way."""
    for partition in DAYS:
        submit(partition, None)
    while not work.did:
        time.sleep(0.01)


def test_partitions_are_worked_on_beside_the_caller_and_waited_for() -> None:
    done, work = DoneAhead(), Work()
    work.may_go.clear()
    with in_background(done, "run", work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, None)
        threading.Timer(0.1, work.may_go.set).start()
    wait_for(done)
    assert sorted(work.did) == DAYS
    work.wait_closed()
    assert work.was_opened <= THREADS
    assert work.told == []


def test_a_caller_that_fails_waits_for_those_under_way_only() -> None:
    """A run that is stopped ends soon, and nothing of it goes on."""
    work = Work()
    work.may_go.clear()

    def stopped() -> None:
        with in_background(DoneAhead(), "run", work.opened, failed=work.told.append) as submit:
            submit_all(submit, work)
            threading.Timer(0.2, work.may_go.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert len(work.did) <= THREADS
    assert work.closed == work.was_opened


def test_few_partitions_wait_in_memory() -> None:
    """A run whose storing is slower than its asking must not keep a month in memory."""
    done, work = DoneAhead(), Work()
    work.may_go.clear()
    with in_background(done, "run", work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, RawPartition())
        work.may_go.set()
    wait_for(done)
    assert sum(known is not None for known in work.known) in range(3, 3 + THREADS + 1)


def test_after_a_failure_nothing_is_begun_and_nothing_is_raised() -> None:
    """With the database away each would wait for it; the steps say what is wrong themselves."""
    done, work = DoneAhead(), Work(fails_at=DAYS[1])
    with in_background(done, "run", work.opened, failed=work.told.append) as submit:
        for partition in DAYS:
            submit(partition, None)
    wait_for(done)
    work.wait_closed()
    assert len(work.did) < len(DAYS)
    assert [str(error) for error in work.told] == [DAYS[1].key]


def test_what_cannot_be_opened_is_told() -> None:
    done = DoneAhead()
    told: SimpleQueue[BaseException] = SimpleQueue()

    @contextmanager
    def opened() -> Iterator[ahead.Work]:
        raise ConnectionError("away")
        yield

    with in_background(done, "run", opened, failed=told.put) as submit:
        submit(FIRST, None)
    wait_for(done)
    assert str(told.get(timeout=10)) == "away"


def test_a_run_that_is_stopped_while_it_waits_leaves_the_rest_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dagster stops a run by an exception wherever its main thread is; here: in a later step."""
    done, work = DoneAhead(), Work()
    work.may_go.clear()
    with in_background(done, "run", work.opened, failed=work.told.append) as submit:
        submit_all(submit, work)

    wait, ours = threading.Condition.wait, threading.current_thread()

    def stopped(self: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread() is ours:
            raise KeyboardInterrupt
        return wait(self, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Condition, "wait", stopped)
        with pytest.raises(KeyboardInterrupt):
            done.take("run", VALIDATED, DAYS)
    work.may_go.set()
    work.wait_closed()
    assert len(work.did) <= THREADS
    assert work.told == []


def test_a_run_that_ends_leaves_undone_what_was_not_begun() -> None:
    """Stopped between two steps, nobody waits: the process would go on storing for minutes."""
    done, work = DoneAhead(), Work()
    work.may_go.clear()
    with in_background(done, "run", work.opened, failed=work.told.append) as submit:
        submit_all(submit, work)
    ahead.nothing_more()
    work.may_go.set()
    wait_for(done)
    work.wait_closed()
    assert len(work.did) <= THREADS
