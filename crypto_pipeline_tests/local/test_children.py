"""Programs a command starts: when they begin, what they are told, how they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from crypto_pipeline.local.children import prepared, running_group, shorten_log

CHATTER = "import sys, time\nn = 0\nwhile True: n += 1; print(n, flush=True); time.sleep(0.001)"


def test_a_log_is_shortened_under_the_program_that_writes_it(tmp_path: Path) -> None:
    """It goes on in the emptied file, without a hole before its next line; one old log stays."""
    log = tmp_path / "log"
    with running_group([sys.executable, "-c", CHATTER], dict(os.environ), output=log) as child:
        for limit in (500, 700):
            deadline = time.monotonic() + 20
            while log.stat().st_size <= limit and time.monotonic() < deadline:
                shorten_log(log, limit=1_000_000)  # not big enough
                time.sleep(0.01)
            assert log.stat().st_size > limit
            shorten_log(log, limit=limit)
            assert (tmp_path / "log.1").stat().st_size > limit
        while log.stat().st_size < 50:
            time.sleep(0.01)
        assert child.poll() is None
    lines = log.read_text().splitlines()
    assert all(line.isdecimal() for line in lines[1:10]), lines[:10]
    assert "\0" not in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]


#: Begins with what it is told, and says so by its exit status.
WAITER = """
import json, signal, sys, time
text = sys.stdin.read()
time.sleep(float(sys.argv[1]))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
sys.exit(int(json.loads(text)["STATUS"]))
"""
SLEEPER = "import time; time.sleep(60)"


def newest_child() -> psutil.Process:
    return max(psutil.Process().children(), key=psutil.Process.create_time)


@contextmanager
def with_a_mistake(program: str, seen: list[psutil.Process]) -> Iterator[None]:
    with prepared([sys.executable, "-c", program, "0"], dict(os.environ)):
        seen.append(newest_child())
        yield


def test_a_prepared_program_begins_with_what_is_known_later() -> None:
    with prepared([sys.executable, "-c", WAITER, "0"], dict(os.environ)) as begin:
        child = newest_child()
        assert begin({"STATUS": "7"}) == 7
    assert not child.is_running()


def test_an_interrupt_while_a_program_still_imports_is_not_lost() -> None:
    """The command had left Ctrl-C to it, and it did not listen yet: all of a backfill was run."""
    with prepared([sys.executable, "-c", WAITER, "3"], dict(os.environ)) as begin:
        child = newest_child()
        threading.Timer(0.5, child.send_signal, [signal.SIGINT]).start()
        assert begin({"STATUS": "0"}) == 128 + signal.SIGINT


@pytest.mark.parametrize("program", [WAITER, SLEEPER])
def test_a_prepared_program_never_begins_without_being_told(program: str) -> None:
    """A mistake in the pipeline file is found after it was started: nothing of it stays."""
    seen: list[psutil.Process] = []
    with pytest.raises(ValueError, match="mistake"), with_a_mistake(program, seen):
        raise ValueError("mistake")
    assert not seen[0].is_running()


def test_a_prepared_program_that_died_says_so_by_its_status() -> None:
    with prepared([sys.executable, "-c", "import sys; sys.exit(3)"], dict(os.environ)) as begin:
        child = newest_child()
        while child.status() != psutil.STATUS_ZOMBIE:  # its status is for who started it
            time.sleep(0.01)
        assert begin({"STATUS": "0"}) == 3
