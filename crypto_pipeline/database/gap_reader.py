"""Reading the ledger, and the candles in the form the ledger is made from: runs.

Times are integer milliseconds, as in :mod:`crypto_pipeline.core.gaps`, days are UTC days.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import psycopg
from psycopg import sql

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.gaps import CAUSES, Gap
from crypto_pipeline.core.intervals import Interval, Intervals
from crypto_pipeline.core.timeframes import timeframe_ms, to_ms
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import table_name
from crypto_pipeline.database.tables import (
    CANDLE_GAPS,
    CANDLE_PARTITIONS,
    CANDLES,
    EXCHANGE_STATES,
)

#: Most series have no hole: as many candles on the timeframe's grid as fit between first and last. One
#: index range a series. With literals, so that only the chunks concerned are planned.
_SPANS: Final = sql.SQL(
    "SELECT span.first, span.last, span.candles, span.on_grid"
    " FROM unnest(%(symbols)s::text[], %(timeframes)s::text[], %(lengths)s::interval[])"
    "  WITH ORDINALITY AS wanted(symbol, timeframe, length, place)"
    " CROSS JOIN LATERAL ("
    "  SELECT min(c.open_time) AS first, max(c.open_time) AS last, count(*) AS candles,"
    "   bool_and(date_bin(wanted.length, c.open_time, %(start)s) = c.open_time) AS on_grid"
    "  FROM {candles} AS c"
    "  WHERE c.exchange = %(exchange)s AND c.symbol = wanted.symbol"
    "   AND c.timeframe = wanted.timeframe"
    "   AND c.open_time >= %(start)s AND c.open_time < %(end)s"
    " ) AS span ORDER BY wanted.place"
).format(candles=table_name(CANDLES))

#: Where a run ends the next candle is not the one due; the run began where the last one ended.
_RUNS: Final = sql.SQL(
    "SELECT wanted.place, coalesce(lag(run.next) OVER per_series, run.first), run.open_time"
    " FROM unnest(%(symbols)s::text[], %(timeframes)s::text[], %(lengths)s::interval[])"
    "  WITH ORDINALITY AS wanted(symbol, timeframe, length, place)"
    " CROSS JOIN LATERAL ("
    "  SELECT open_time, first, next FROM ("
    "   SELECT c.open_time, first_value(c.open_time) OVER by_time AS first,"
    "    lead(c.open_time) OVER by_time AS next FROM {candles} AS c"
    "   WHERE c.exchange = %(exchange)s AND c.symbol = wanted.symbol"
    "    AND c.timeframe = wanted.timeframe"
    "    AND c.open_time >= %(start)s AND c.open_time < %(end)s"
    "   WINDOW by_time AS (ORDER BY c.open_time)"
    "  ) AS stored WHERE next IS DISTINCT FROM open_time + wanted.length"
    " ) AS run"
    " WINDOW per_series AS (PARTITION BY wanted.place ORDER BY run.open_time)"
    " ORDER BY wanted.place, run.open_time"
).format(candles=table_name(CANDLES))

_GAPS: Final = sql.SQL(
    "SELECT symbol, timeframe, gap_start, gap_end, cause, evidence, first_seen, last_checked,"
    " next_retry FROM {} WHERE exchange = %(exchange)s AND gap_start < %(end)s"
    " AND gap_start > %(start)s::timestamptz - interval '24 hours' AND gap_end > %(start)s"
    " ORDER BY symbol, timeframe, gap_start"
).format(table_name(CANDLE_GAPS))

_DUE: Final = sql.SQL(
    "SELECT DISTINCT (gap_start AT TIME ZONE 'UTC')::date AS day FROM {gaps}"
    " WHERE exchange = %(exchange)s AND next_retry IS NOT NULL AND (next_retry <= %(now)s"
    "  OR cause = 'fetch_failed' AND last_checked <"
    "   (SELECT back_at FROM {states} WHERE exchange = %(exchange)s))"
    " ORDER BY day"
).format(gaps=table_name(CANDLE_GAPS), states=table_name(EXCHANGE_STATES))

_STATES: Final = sql.SQL(
    "SELECT partition_date, complete, expected, stored, missing, unproven, live, answered_at,"
    " checked_at FROM {} WHERE exchange = %(exchange)s AND partition_date >= %(since)s"
    " AND partition_date <= %(until)s ORDER BY partition_date"
).format(table_name(CANDLE_PARTITIONS))

_LIVE_SINCE: Final = sql.SQL(
    "SELECT min(partition_date) FROM {} WHERE exchange = %(exchange)s AND live"
).format(table_name(CANDLE_PARTITIONS))

_MISSING: Final = sql.SQL(
    "SELECT symbol, timeframe, cause, sum(gap_end - gap_start) FROM {}"
    " WHERE exchange = %(exchange)s GROUP BY symbol, timeframe, cause"
).format(table_name(CANDLE_GAPS))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPartition:
    """What ``candle_partitions`` holds of one: :class:`~crypto_pipeline.core.gaps.PartitionState`.

    Attributes:
        complete: every candle that was due is stored, or its absence is proven.
        expected: candles that were due.
        stored: of those, how many the table held.
        missing: the others.
        unproven: of the missing, those without a proven cause.
        live: the minute schedule collected it while it was today.
        answered_at: when the exchange last answered about it; None if never.
        checked_at: when this was found.
    """

    complete: bool
    expected: int
    stored: int
    missing: int
    unproven: int
    live: bool
    answered_at: int | None
    checked_at: int


def stored_runs(
    conn: psycopg.Connection,
    *,
    exchange: str,
    series: Sequence[tuple[str, str]],
    start: datetime,
    end: datetime,
) -> dict[Series, Intervals]:
    """What is stored of each ``(symbol, timeframe)`` in ``[start, end)``, as runs without a hole.

    A run goes from its first candle's open time to its last one's close, so its length tells how
    many candles it has. Every series asked for is in the answer.

    Raises:
        DatabaseError: the database is away.
        ValueError: a timeframe that is none.
    """
    wanted = [Series(*one) for one in series]
    found: dict[Series, Intervals] = dict.fromkeys(wanted, ())
    with (
        database_errors(conn, f"look for runs of candles of {exchange!r}"),
        psycopg.ClientCursor(conn) as cursor,
    ):
        scope = {"exchange": exchange, "start": start, "end": end}
        spans = cursor.execute(_SPANS, {**scope, **_columns(wanted)}).fetchall()
        holed = []
        for one, (first, last, candles, on_grid) in zip(wanted, spans, strict=True):
            if candles and on_grid and candles == (last - first) // _length(one) + 1:
                found[one] = (Interval(to_ms(first), to_ms(last + _length(one))),)
            elif candles:
                holed.append(one)
        rows = cursor.execute(_RUNS, {**scope, **_columns(holed)}).fetchall() if holed else []
    runs: defaultdict[Series, list[Interval]] = defaultdict(list)
    for place, first, last in rows:
        one = holed[place - 1]
        runs[one].append(Interval(to_ms(first), to_ms(last + _length(one))))
    return {**found, **{one: tuple(each) for one, each in runs.items()}}


def _columns(series: Sequence[Series]) -> dict[str, object]:
    return {
        "symbols": [one.symbol for one in series],
        "timeframes": [one.timeframe for one in series],
        "lengths": [_length(one) for one in series],
    }


def _length(series: Series) -> timedelta:
    return timedelta(milliseconds=timeframe_ms(series.timeframe))


def gaps(conn: psycopg.Connection, *, exchange: str, start: datetime, end: datetime) -> list[Gap]:
    """The recorded gaps of an exchange that touch ``[start, end)``, whole, by series and time."""
    scope = {"exchange": exchange, "start": start, "end": end}
    with database_errors(conn, f"read the gaps of {exchange!r}"):
        rows = conn.execute(_GAPS, scope).fetchall()
    return [
        Gap(
            symbol=symbol,
            timeframe=timeframe,
            start=to_ms(gap_start),
            end=to_ms(gap_end),
            cause=cause,
            evidence=evidence,
            first_seen=to_ms(first_seen),
            last_checked=_optional_ms(last_checked),
            next_retry=_optional_ms(next_retry),
        )
        for (
            symbol,
            timeframe,
            gap_start,
            gap_end,
            cause,
            evidence,
            first_seen,
            last_checked,
            next_retry,
        ) in rows
    ]


def due_days(conn: psycopg.Connection, *, exchange: str, now: datetime) -> list[date]:
    """The days to ask for again, first to last.

    Those with a gap whose retry is due, or whose request failed before the exchange came back: what
    kept it from answering is over.
    """
    scope = {"exchange": exchange, "now": now}
    with database_errors(conn, f"look for due gaps of {exchange!r}"):
        return [day for (day,) in conn.execute(_DUE, scope).fetchall()]


def partition_states(
    conn: psycopg.Connection, *, exchange: str, since: date, until: date = date.max
) -> dict[date, StoredPartition]:
    """The recorded partitions from a day to another, both included, in order of days."""
    scope = {"exchange": exchange, "since": since, "until": until}
    with database_errors(conn, f"read the partitions of {exchange!r}"):
        rows = conn.execute(_STATES, scope).fetchall()
    return {
        day: StoredPartition(
            complete=complete,
            expected=expected,
            stored=stored,
            missing=missing,
            unproven=unproven,
            live=live,
            answered_at=_optional_ms(answered_at),
            checked_at=to_ms(checked_at),
        )
        for day, complete, expected, stored, missing, unproven, live, answered_at, checked_at in rows
    }


def live_since(conn: psycopg.Connection, *, exchange: str) -> date | None:
    """The first day the minute schedule collected; None if it never did."""
    with database_errors(conn, f"ask since when {exchange!r} is live"):
        row = conn.execute(_LIVE_SINCE, {"exchange": exchange}).fetchone()
    return None if row is None else row[0]


def missing_by_cause(conn: psycopg.Connection, *, exchange: str) -> dict[Series, dict[str, int]]:
    """How many candles of each series the ledger has as missing, by cause in their fixed order."""
    with database_errors(conn, f"count the missing candles of {exchange!r}"):
        rows = conn.execute(_MISSING, {"exchange": exchange}).fetchall()
    missing: defaultdict[Series, dict[str, int]] = defaultdict(dict)
    for symbol, timeframe, cause, total in sorted(rows, key=lambda row: CAUSES.index(row[2])):
        length = timedelta(milliseconds=timeframe_ms(timeframe))
        missing[Series(symbol, timeframe)][cause] = total // length
    return dict(missing)


def _optional_ms(time: datetime | None) -> int | None:
    return None if time is None else to_ms(time)
