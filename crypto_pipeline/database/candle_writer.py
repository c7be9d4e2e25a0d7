"""Writing candles: one partition, one transaction, again and again with the same outcome.

Nothing here deletes. A row is written when it is new or when one of its five values differs from
the stored one; otherwise it keeps its row version, its ``fetched_at`` and its ``run_id``, and no
WAL is written. Of two answers about a candle the later one wins, whichever run ends first, and of
two of the same time the one written last: writers of the same exchange and UTC day take turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql

from crypto_pipeline.database.copy_binary import binary_copy_blocks
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.frames import CandleArrays, candle_arrays, newest_of_each_series
from crypto_pipeline.database.hour_writer import (
    TIMEFRAME,
    hour_bounds,
    put_hours,
    refresh_hours,
)
from crypto_pipeline.database.statements import LOCK, assignments, lock_keys, names, table_name
from crypto_pipeline.database.tables import CANDLE_SERIES, CANDLES, LIVE_CANDLES, VALUES
from crypto_pipeline.database.version import enter_as_writer, refuse_other_version

if TYPE_CHECKING:
    import pandas as pd

_KEY: Final = tuple(CANDLES.primary_key.columns.keys())
_COLUMNS: Final = tuple(CANDLES.columns.keys())
_SENT: Final = tuple(name for name in _COLUMNS if name != "exchange")
_BOOKKEEPING: Final = ("fetched_at", "run_id", "source")
_STAGING: Final = sql.Identifier("candle_staging")

#: What a frame can meet in the table. As literals of the statement: with parameters the planner
#: knows neither the chunk nor how few rows these are, and reads the whole table.
_SCOPE: Final = sql.SQL(
    "stored.exchange = %(exchange)s"
    " AND stored.symbol = ANY(%(symbols)s) AND stored.timeframe = ANY(%(timeframes)s)"
    " AND stored.open_time >= %(first)s AND stored.open_time <= %(last)s"
)

_IS_EMPTY: Final = sql.SQL("SELECT NOT EXISTS (SELECT FROM {} AS stored WHERE {})").format(
    table_name(CANDLES), _SCOPE
)
_MAKE_STAGING: Final = sql.SQL(
    "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
).format(_STAGING, names(_SENT), table_name(CANDLES))
_DROP_STAGING: Final = sql.SQL("DROP TABLE pg_temp.{}").format(_STAGING)

#: The comparison leaves unchanged rows alone; ON CONFLICT alone would lock, and log, each of them.
#: What is left is new, changed, or stale: from an older answer than the stored row.
_MERGE: Final = sql.SQL(
    "WITH differing AS MATERIALIZED ("
    " SELECT staged.*, coalesce(staged.fetched_at < stored.fetched_at, false) AS stale"
    " FROM {staging} AS staged LEFT JOIN {candles} AS stored ON {scope}"
    "  AND stored.symbol = staged.symbol AND stored.timeframe = staged.timeframe"
    "  AND stored.open_time = staged.open_time"
    " WHERE stored.open_time IS NULL OR ({stored_values}) IS DISTINCT FROM ({staged_values})"
    "), written AS ("
    " INSERT INTO {candles} AS stored ({columns})"
    " SELECT %(exchange)s, {staged} FROM differing AS staged WHERE NOT stale"
    " ORDER BY {staged_key}"
    " ON CONFLICT ({key}) DO UPDATE SET {assignments}"
    " WHERE ({stored_values}) IS DISTINCT FROM ({new_values})"
    "  AND excluded.fetched_at >= stored.fetched_at"
    " RETURNING {is_new} AS is_new, stored.timeframe, stored.open_time"
    ") SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new),"
    " (SELECT count(*) FROM differing WHERE stale),"
    " min(open_time) FILTER (WHERE timeframe = %(minutes)s),"
    " max(open_time) FILTER (WHERE timeframe = %(minutes)s) FROM written"
)

_KNOW_SERIES: Final = sql.SQL(
    "INSERT INTO {} (exchange, symbol, timeframe)"
    " SELECT %(exchange)s, * FROM unnest(%(symbol)s::text[], %(timeframe)s::text[])"
    " ON CONFLICT DO NOTHING"
).format(table_name(CANDLE_SERIES))

_LIVE_COLUMNS: Final = tuple(LIVE_CANDLES.columns.keys())
_LIVE_KEY: Final = tuple(LIVE_CANDLES.primary_key.columns.keys())
_REPLACE_LIVE: Final = sql.SQL(
    "INSERT INTO {live} AS stored ({columns})"
    " SELECT %(exchange)s, * FROM unnest(%(symbol)s::text[], %(timeframe)s::text[],"
    " %(open_time)s::timestamptz[], %(open)s::float8[], %(high)s::float8[], %(low)s::float8[],"
    " %(close)s::float8[], %(volume)s::float8[], %(fetched_at)s::timestamptz[], %(run_id)s::text[])"
    " ON CONFLICT ({key}) DO UPDATE SET {assignments}"
    " WHERE (excluded.open_time, excluded.fetched_at) > (stored.open_time, stored.fetched_at)"
).format(
    live=table_name(LIVE_CANDLES),
    columns=names(_LIVE_COLUMNS),
    key=names(_LIVE_KEY),
    assignments=assignments(name for name in _LIVE_COLUMNS if name not in _LIVE_KEY),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What became of a frame's rows.

    Attributes:
        inserted: rows that were not there.
        changed: rows that were there with other values, now replaced.
        unchanged: rows that were there with these values, left alone.
        stale: rows that were there with other values from a later answer, left alone.
    """

    inserted: int = 0
    changed: int = 0
    unchanged: int = 0
    stale: int = 0


def upsert_candles(
    conn: psycopg.Connection,
    frame: pd.DataFrame,
    *,
    exchange: str,
    start: datetime,
    end: datetime,
) -> WriteResult:
    """Bring the final candles of one partition into ``candles``, and their hours up to date.

    Args:
        conn: an autocommit connection of :mod:`crypto_pipeline.database.connection`.
        frame: symbol, timeframe, open_time, open … volume, fetched_at, run_id, source, in any
            order of rows; further columns are ignored.
        exchange: the frame's exchange.
        start: the first instant of the partition, with its time zone.
        end: the first instant after it.

    Raises:
        DatabaseError: nothing was stored. A broken constraint is named in the message; tables of
            another version are refused.
    """
    if frame.empty:
        return WriteResult()
    rows = candle_arrays(frame, start=start, end=end, texts=("run_id", "source"))
    doing = f"store {len(rows):,} candles of {exchange!r} from {start.isoformat()}"
    scope = {
        "exchange": exchange,
        "symbols": rows.symbols,
        "timeframes": rows.timeframes,
        "first": rows.first,
        "last": rows.last,
    }
    with database_errors(conn, doing):  # before the rows, alone: nobody waits for their commit
        refuse_other_version(conn)
        symbols, timeframes = (list(names) for names in zip(*rows.series, strict=True))
        conn.execute(
            _KNOW_SERIES, {"exchange": exchange, "symbol": symbols, "timeframe": timeframes}
        )
    with (
        database_errors(conn, doing),
        conn.transaction(),
        psycopg.ClientCursor(conn) as cursor,
    ):
        days = _utc_days(start, end)
        keys = lock_keys(purpose="candles", exchange=exchange, parts=days)
        cursor.execute(LOCK, {"keys": keys})
        enter_as_writer(cursor)
        first, end = hour_bounds(rows)
        hours = {**scope, "first": first, "last": end - timedelta(microseconds=1)}
        hours_empty = _is_empty(cursor, hours)
        if hours_empty or _is_empty(cursor, scope):
            _copy(cursor, rows, into=table_name(CANDLES), exchange=exchange)
            if hours_empty:
                put_hours(cursor, rows, exchange=exchange)
            else:
                refresh_hours(cursor, rows, exchange=exchange, written=(rows.first, rows.last))
            return WriteResult(inserted=len(rows))
        cursor.execute(_MAKE_STAGING)
        _copy(cursor, rows, into=_STAGING)
        merge = _merge_statement(server_version=conn.info.server_version)
        inserted, changed, stale, *written = cursor.execute(
            merge, {**scope, "minutes": TIMEFRAME}
        ).fetchone() or (0, 0, 0, None, None)
        cursor.execute(_DROP_STAGING)
        refresh_hours(cursor, rows, exchange=exchange, written=written)
    return WriteResult(
        inserted=inserted,
        changed=changed,
        unchanged=len(rows) - inserted - changed - stale,
        stale=stale,
    )


def replace_live_candles(conn: psycopg.Connection, frame: pd.DataFrame, *, exchange: str) -> int:
    """Bring the newest forming candle of each series into ``live_candles``.

    A stored candle gives way to one that opened later, or to a later answer about the same one: a
    slow, older run replaces nothing. The row of a series stays when its candle closes, until the
    next forming candle comes.

    Args:
        conn: an autocommit connection of :mod:`crypto_pipeline.database.connection`.
        frame: columns as for :func:`upsert_candles`, without source.
        exchange: the frame's exchange.

    Returns:
        How many rows were written.
    """
    if frame.empty:
        return 0
    newest = newest_of_each_series(frame)
    columns = {name: newest[name].tolist() for name in _LIVE_COLUMNS if name != "exchange"}
    doing = f"store {len(newest):,} forming candles of {exchange!r}"
    with database_errors(conn, doing), conn.transaction():
        refuse_other_version(conn)
        conn.execute(LOCK, {"keys": lock_keys(purpose="live", exchange=exchange)})
        return conn.execute(_REPLACE_LIVE, {"exchange": exchange, **columns}).rowcount


def _is_empty(cursor: psycopg.ClientCursor, scope: dict[str, object]) -> bool:
    return cursor.execute(_IS_EMPTY, scope).fetchone() == (True,)


def _copy(
    cursor: psycopg.ClientCursor,
    rows: CandleArrays,
    *,
    into: sql.Identifier,
    exchange: str | None = None,
) -> None:
    columns = [rows.columns[name] for name in _SENT]
    if exchange is not None:
        columns.insert(0, rows.constant(exchange))
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        into, names(_SENT if exchange is None else _COLUMNS)
    )
    with cursor.copy(statement) as copy:
        for block in binary_copy_blocks(columns, rows=len(rows), order=rows.order):
            copy.write(block)


def _merge_statement(*, server_version: int) -> sql.Composed:
    """The merge; how it tells new rows from changed ones depends on the server."""
    return _MERGE.format(
        candles=table_name(CANDLES),
        columns=names(_COLUMNS),
        staged=names(_SENT, of="staged"),
        staging=_STAGING,
        scope=_SCOPE,
        stored_values=names(VALUES, of="stored"),
        staged_values=names(VALUES, of="staged"),
        new_values=names(VALUES, of="excluded"),
        staged_key=names((name for name in _KEY if name != "exchange"), of="staged"),
        key=names(_KEY),
        assignments=assignments((*VALUES, *_BOOKKEEPING)),
        is_new=sql.SQL(
            "(old.open_time IS NULL)" if server_version >= 180_000 else "(stored.xmax = 0)"
        ),
    )


def _utc_days(start: datetime, end: datetime) -> list[str]:
    first = start.astimezone(UTC).date()
    last = (end.astimezone(UTC) - timedelta(microseconds=1)).date()
    return [(first + timedelta(days=day)).isoformat() for day in range((last - first).days + 1)]
