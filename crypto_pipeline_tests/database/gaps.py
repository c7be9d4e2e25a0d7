"""Gaps and partitions for tests of the ledger, on the day of :mod:`frames`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import psycopg

from crypto_pipeline.core.gaps import PROVEN, Gap, PartitionState
from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms, timeframe_ms, to_ms
from crypto_pipeline.database.gap_writer import Found, record_partitions
from crypto_pipeline_tests.database.frames import START

DAY = START.date()
DAY_MS = to_ms(START)
NOW = to_ms(START + timedelta(days=1, hours=1))
LATER = NOW + 10 * MINUTE_MS
EXPECTED = 10_000


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def gap(first: int, last: int, cause: str = "no_trades", **changes: Any) -> Gap:
    """The minutes from ``first`` up to ``last`` of the day."""
    return Gap(
        **{
            "symbol": "BTC/USDT",
            "timeframe": "1m",
            "start": DAY_MS + first * MINUTE_MS,
            "end": DAY_MS + last * MINUTE_MS,
            "cause": cause,
            "evidence": "as the test has it",
            "first_seen": NOW,
            "last_checked": NOW,
            "next_retry": None if cause in PROVEN else LATER,
            **changes,
        }
    )


def moved(gap: Gap, day: date) -> Gap:
    """The same hours on another day."""
    by = day_start_ms(day) - DAY_MS
    return replace(gap, start=gap.start + by, end=gap.end + by)


def state_of(gaps: Sequence[Gap], *, checked_at: int = NOW, **changes: Any) -> PartitionState:
    """Of :data:`EXPECTED` candles all are stored but for the gaps."""
    missing: dict[Any, int] = {}
    for one in gaps:
        count = (one.end - one.start) // timeframe_ms(one.timeframe)
        missing[one.cause] = missing.get(one.cause, 0) + count
    stored = EXPECTED - sum(missing.values())
    given = {"expected": EXPECTED, "stored": stored, "answered_at": NOW, "missing": missing}
    return PartitionState(**{**given, "checked_at": checked_at, **changes})


def record(
    conn: psycopg.Connection,
    *gaps: Gap,
    day: date = DAY,
    exchange: str = "binance",
    live: bool = False,
    checked_at: int = NOW,
    **changes: Any,
) -> None:
    """Record a partition with these gaps; ``changes`` are its state's."""
    state = state_of(gaps, checked_at=checked_at, **changes)
    record_partitions(conn, exchange=exchange, found={day: Found(gaps, state)}, live=live)
