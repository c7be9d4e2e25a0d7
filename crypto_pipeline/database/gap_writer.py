"""Keeping the ledger: the gaps of partitions and their states, replaced together or not at all.

Rows that are as they should be keep their row version. What an older look found never replaces
what a newer one did, so runs of the same partition may end in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from typing import Any, Final

import psycopg
from psycopg import sql

from crypto_pipeline.core.gaps import Gap, PartitionState
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, timeframe_ms, utc
from crypto_pipeline.database.exchange_states import note_answered
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.gap_reader import gaps as stored_gaps
from crypto_pipeline.database.statements import LOCK, assignments, lock_keys, names, table_name
from crypto_pipeline.database.tables import CANDLE_GAPS, CANDLE_PARTITIONS, EVIDENCE_LIMIT
from crypto_pipeline.database.texts import cut, representable
from crypto_pipeline.errors import DatabaseError

_KEY: Final = tuple(CANDLE_GAPS.primary_key.columns.keys())
_REST: Final = tuple(CANDLE_GAPS.columns.keys())[len(_KEY) :]

_DELETE: Final = sql.SQL(
    "DELETE FROM {} AS stored USING unnest(%(symbol)s::text[], %(timeframe)s::text[],"
    " %(gap_start)s::timestamptz[]) AS gone(symbol, timeframe, gap_start)"
    " WHERE stored.exchange = %(exchange)s AND stored.symbol = gone.symbol"
    " AND stored.timeframe = gone.timeframe AND stored.gap_start = gone.gap_start"
).format(table_name(CANDLE_GAPS))

_UPSERT: Final = sql.SQL(
    "INSERT INTO {table} ({columns}) SELECT %(exchange)s, * FROM unnest(%(symbol)s::text[],"
    " %(timeframe)s::text[], %(gap_start)s::timestamptz[], %(gap_end)s::timestamptz[],"
    " %(cause)s::text[], %(evidence)s::text[], %(first_seen)s::timestamptz[],"
    " %(last_checked)s::timestamptz[], %(next_retry)s::timestamptz[])"
    " ON CONFLICT ({key}) DO UPDATE SET {assignments}"
).format(
    table=table_name(CANDLE_GAPS),
    columns=names((*_KEY, *_REST)),
    key=names(_KEY),
    assignments=assignments(_REST),
)

_NEWER: Final = sql.SQL(
    "SELECT partition_date FROM {} JOIN unnest(%(days)s::date[], %(looked)s::timestamptz[])"
    " AS found(day, looked) ON partition_date = day AND checked_at > looked"
    " WHERE exchange = %(exchange)s"
).format(table_name(CANDLE_PARTITIONS))

_STATE: Final = (
    "complete", "expected", "stored", "missing", "unproven", "answered_at", "checked_at"
)  # fmt: skip
_SET_STATE: Final = sql.SQL(
    "INSERT INTO {table} AS stored (exchange, partition_date, live, {state})"
    " VALUES (%(exchange)s, %(day)s, %(live)s, {values})"
    " ON CONFLICT (exchange, partition_date) DO UPDATE SET"
    " live = stored.live OR excluded.live, {assignments}"
    " WHERE (stored.live OR excluded.live, {new}) IS DISTINCT FROM (stored.live, {old})"
).format(
    table=table_name(CANDLE_PARTITIONS),
    state=names(_STATE),
    values=sql.SQL(", ").join(map(sql.Placeholder, _STATE)),
    assignments=assignments(_STATE),
    new=names(_STATE, of="excluded"),
    old=names(_STATE, of="stored"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at one partition found.

    Attributes:
        gaps: all its gaps, by time within each series; long evidence is cut.
        state: its sums.
    """

    gaps: Sequence[Gap]
    state: PartitionState


def record_partitions(
    conn: psycopg.Connection, *, exchange: str, found: Mapping[date, Found], live: bool = False
) -> None:
    """Replace the gaps of partitions and their states.

    A gap keeps the earliest ``first_seen`` of the stored ones it overlaps, whatever their cause.
    Nothing is written of a partition that was checked after its ``state.checked_at`` already.

    Args:
        conn: an autocommit connection of :mod:`crypto_pipeline.database.connection`.
        exchange: the partitions' exchange.
        found: by their UTC days.
        live: the minute schedule collected them while they were today; once said, it stays.

    Raises:
        DatabaseError: nothing was written. Gaps that are not those of one partition are a mistake
            of the program; a broken constraint is named in the message.
    """
    days = sorted(found)
    for day in days:
        _check(found[day].gaps, day)
    keys = lock_keys(purpose="gaps", exchange=exchange, parts=[day.isoformat() for day in days])
    looked = [utc(found[day].state.checked_at) for day in days]
    with database_errors(conn, _doing(exchange, found)), conn.transaction():
        conn.execute(LOCK, {"keys": keys})
        scope = {"exchange": exchange, "days": days, "looked": looked}
        newer = {day for (day,) in conn.execute(_NEWER, scope).fetchall()}
        days = [day for day in days if day not in newer]
        if not days:
            return
        stored = _stored(conn, exchange, days)
        ours = [gap for day in days for gap in found[day].gaps]
        _replace(conn, exchange=exchange, stored=stored, wanted=_merged(ours, stored))
        with conn.cursor() as cursor:
            partition = {"exchange": exchange, "live": live}
            rows = ({**partition, "day": day, **_state_row(found[day].state)} for day in days)
            cursor.executemany(_SET_STATE, rows)
        answered = [found[day].state.answered_at for day in days]
        last = max((at for at in answered if at is not None), default=None)
        if last is not None:
            note_answered(conn, exchange=exchange, at=last)


def _stored(conn: psycopg.Connection, exchange: str, days: Sequence[date]) -> list[Gap]:
    start, end = utc(day_start_ms(days[0])), utc(day_start_ms(days[-1]) + DAY_MS)
    starts = {day_start_ms(day) for day in days}
    found = stored_gaps(conn, exchange=exchange, start=start, end=end)
    return [gap for gap in found if gap.start // DAY_MS * DAY_MS in starts]


def _doing(exchange: str, found: Mapping[date, Found]) -> str:
    number = sum(len(each.gaps) for each in found.values())
    first, last = min(found).isoformat(), max(found).isoformat()
    when = f"on {first}" if first == last else f"from {first} to {last}"
    return f"record {number:,} gaps of {exchange!r} {when}"


def _replace(
    conn: psycopg.Connection, *, exchange: str, stored: Sequence[Gap], wanted: Sequence[Gap]
) -> None:
    kept = {_key(gap) for gap in wanted}
    gone = [gap for gap in stored if _key(gap) not in kept]
    if gone:
        conn.execute(_DELETE, {"exchange": exchange, **_columns(gone)})
    as_they_are = {_lasting(gap) for gap in stored}
    changed = [gap for gap in wanted if _lasting(gap) not in as_they_are]
    if changed:
        conn.execute(_UPSERT, {"exchange": exchange, **_columns(changed)})


def _merged(gaps: Sequence[Gap], stored: Sequence[Gap]) -> list[Gap]:
    """The gaps as they are to be stored; both in order of time within each series."""
    before = _by_series(stored)
    return [
        replace(
            gap,
            evidence=cut(representable(gap.evidence), EVIDENCE_LIMIT),
            first_seen=seen,
        )
        for series, ours in _by_series(gaps).items()
        for gap, seen in zip(ours, _first_seen(ours, before.get(series, [])), strict=True)
    ]


def _first_seen(gaps: Sequence[Gap], stored: Sequence[Gap]) -> list[int]:
    """For each gap the earliest time that it or a stored one it overlaps was first seen."""
    earliest = []
    position = 0
    for gap in gaps:
        while position < len(stored) and stored[position].end <= gap.start:
            position += 1
        seen = gap.first_seen
        overlapping = position
        while overlapping < len(stored) and stored[overlapping].start < gap.end:
            seen = min(seen, stored[overlapping].first_seen)
            overlapping += 1
        earliest.append(seen)
    return earliest


def _check(gaps: Sequence[Gap], day: date) -> None:
    """Refuse what cannot be the gaps of one partition.

    Raises:
        DatabaseError: a gap is empty, leaves the day, is not one of whole candles, overlaps
            another or comes before it.
    """
    first = day_start_ms(day)
    for (_, timeframe), ours in _by_series(gaps).items():
        try:
            length = timeframe_ms(timeframe)
        except ValueError as error:
            raise _not_recordable(str(error)) from error
        end = first
        for gap in ours:
            if not first <= gap.start < gap.end <= first + DAY_MS:
                raise _not_recordable(f"{_told(gap)} is not a part of {day.isoformat()}")
            if (gap.start - first) % length or (gap.end - first) % length:
                raise _not_recordable(f"{_told(gap)} is not one of whole candles")
            if gap.start < end:
                raise _not_recordable(f"{_told(gap)} begins before the end of the one before it")
            end = gap.end


def _by_series(gaps: Iterable[Gap]) -> dict[tuple[str, str], list[Gap]]:
    by_series: dict[tuple[str, str], list[Gap]] = {}
    for series, ours in groupby(gaps, key=lambda gap: (gap.symbol, gap.timeframe)):
        by_series.setdefault(series, []).extend(ours)
    return by_series


def _lasting(gap: Gap) -> Gap:
    """What a row is rewritten for: a proven gap's not for another answer that says the same."""
    return gap if gap.next_retry is not None else replace(gap, last_checked=None)


def _key(gap: Gap) -> tuple[str, str, int]:
    return gap.symbol, gap.timeframe, gap.start


def _columns(gaps: Sequence[Gap]) -> dict[str, list[Any]]:
    return {
        "symbol": [gap.symbol for gap in gaps],
        "timeframe": [gap.timeframe for gap in gaps],
        "gap_start": [utc(gap.start) for gap in gaps],
        "gap_end": [utc(gap.end) for gap in gaps],
        "cause": [gap.cause for gap in gaps],
        "evidence": [gap.evidence for gap in gaps],
        "first_seen": [utc(gap.first_seen) for gap in gaps],
        "last_checked": [None if at is None else utc(at) for at in (g.last_checked for g in gaps)],
        "next_retry": [None if at is None else utc(at) for at in (g.next_retry for g in gaps)],
    }


def _state_row(state: PartitionState) -> Mapping[str, object]:
    return {
        "complete": state.complete,
        "expected": state.expected,
        "stored": state.stored,
        "missing": sum(state.missing.values()),
        "unproven": state.unproven,
        "answered_at": None if state.answered_at is None else utc(state.answered_at),
        "checked_at": utc(state.checked_at),
    }


def _told(gap: Gap) -> str:
    return (
        f"the gap [{utc(gap.start).isoformat()}, {utc(gap.end).isoformat()}) of"
        f" {gap.symbol} {gap.timeframe}"
    )


def _not_recordable(what: str) -> DatabaseError:
    return DatabaseError(
        f"The gaps cannot be recorded: {what}.",
        hint="this is a mistake of the program that found the gaps; nothing was stored.",
        rerun_helps=False,
    )
