"""A small part of ``make fuzz`` in each run of the suite; and that it finds what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from crypto_pipeline.core import judging, observations, routing, rows, rules, validation
from crypto_pipeline.corridor import day_book
from crypto_pipeline.database.connection import connect
from crypto_pipeline_tests.fuzzing.campaign import batches
from crypto_pipeline_tests.fuzzing.checking import Broken, Tally


@pytest.fixture(scope="module")
def conn(new_database: Callable[[], str]) -> Iterator[psycopg.Connection]:
    with connect(new_database()) as conn:
        yield conn


def run(conn: psycopg.Connection, lake: Path, *, seed: int, answers: int) -> Tally:
    total = Tally()
    for tally in batches(answers, seed, conn=conn, lake=lake, size=500):
        total.add(tally)
    return total


def test_hostile_answers_store_only_what_was_sent(conn: psycopg.Connection, tmp_path: Path) -> None:
    """Typed errors only; each row stored, forming or refused by name; values bit by bit."""
    total = run(conn, tmp_path, seed=1, answers=4_000)
    assert total.answers == 4_000
    assert total.rules.keys() == rules.RULE_DEMANDS.keys()
    assert min(total.stored, total.forming, total.unasked, total.errors["BadAnswer"]) > 0


MISTAKES: dict[str, tuple[object, str, Any]] = {
    "any digits and signs are a number": (rows, "_DECIMAL", re.compile(r"[-+0-9_.eE]+")),
    "the far future is a time": (rows, "_TIME_BOUNDS_MS", (0, 10**16)),
    "any future is allowed": (rules, "FUTURE_TOLERANCE_MS", 10**9),
    "rows that break a rule are kept": (
        validation, "first_broken", lambda columns: np.full(len(columns.open_time), -1, np.int8),
    ),
    "a bad row settles its minute": (
        judging, "first_broken", lambda columns: np.full(len(columns.open_time), -1, np.int8),
    ),
    "corrections are taken for repeats": (
        observations, "_repeats", lambda rows: rows.statement > 0,
    ),
    "a row vanishes": (
        day_book, "home_days",
        lambda times, *args, **named: np.where(
            np.arange(len(times)) == 50, -1, routing.home_days(times, *args, **named)
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    """The oracle is another statement of the rules: a change of either shows."""
    monkeypatch.setattr(*MISTAKES[mistake])
    with pytest.raises(Broken):
        run(conn, tmp_path, seed=100 + list(MISTAKES).index(mistake), answers=3_000)
