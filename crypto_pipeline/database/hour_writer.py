"""Hours of 1m candles, kept beside them in the same transaction.

An hour is whatever its stored minutes make of it, and ``minutes`` says how many there are: nothing is
filled in. Rolling a year up takes a tenth of a second; reading it here takes a sixth of that. Where
the hours were empty they are made from the frame that fills them, else from the table.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from psycopg import sql

from crypto_pipeline.database.copy_binary import (
    Column,
    Float8Column,
    SmallintColumn,
    TextColumn,
    TimestampColumn,
    binary_copy_blocks,
)
from crypto_pipeline.database.statements import assignments, names, table_name
from crypto_pipeline.database.tables import CANDLE_HOURS, CANDLES, VALUES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg
    from numpy.typing import NDArray

    from crypto_pipeline.database.frames import CandleArrays

TIMEFRAME: Final = "1m"

_HOUR: Final = timedelta(hours=1)
_HOUR_US: Final = 3_600_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = tuple(CANDLE_HOURS.columns.keys())
_KEY: Final = tuple(CANDLE_HOURS.primary_key.columns.keys())

#: The sum of an hour of more is infinite, which PostgreSQL refuses to add up to. No market comes near.
_LARGEST_VOLUME: Final = 1e306

_SCOPE: Final = sql.SQL(
    "exchange = %(exchange)s AND symbol = ANY(%(symbols)s)"
    " AND open_time >= %(first)s AND open_time < %(end)s"
)
_FORGET: Final = sql.SQL("DELETE FROM {} WHERE {}").format(table_name(CANDLE_HOURS), _SCOPE)
#: An hour whose minutes somebody deleted is none.
_FORGET_EMPTY: Final = sql.SQL(
    "DELETE FROM {hours} AS kept WHERE {scope} AND NOT EXISTS (SELECT FROM {candles} AS c"
    " WHERE c.exchange = %(exchange)s AND c.symbol = kept.symbol AND c.timeframe = %(timeframe)s"
    "  AND c.open_time >= kept.open_time AND c.open_time < kept.open_time + interval '1 hour'"
    "  AND c.open_time >= %(first)s AND c.open_time < %(end)s)"
).format(hours=table_name(CANDLE_HOURS), candles=table_name(CANDLES), scope=_SCOPE)
_MINUTES: Final = sql.SQL("SELECT coalesce(sum(minutes), 0) FROM {} WHERE {}").format(
    table_name(CANDLE_HOURS), _SCOPE
)
_COPY: Final = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
    table_name(CANDLE_HOURS), names(_COLUMNS)
)
_FROM_TABLE: Final = sql.SQL(
    "INSERT INTO {hours} AS stored ({columns})"
    " SELECT %(exchange)s, symbol, date_bin('1 hour', open_time, '2000-01-01 00:00:00+00') AS hour,"
    "  (array_agg(open ORDER BY open_time))[1], max(high), min(low),"
    "  (array_agg(close ORDER BY open_time))[count(*)], sum(least(volume, %(largest)s) ORDER BY open_time), count(*)"
    " FROM {candles} WHERE {scope} AND timeframe = %(timeframe)s GROUP BY symbol, hour"
    " ON CONFLICT ({key}) DO UPDATE SET {assignments}"
    " WHERE ({stored}) IS DISTINCT FROM ({made})"
).format(
    hours=table_name(CANDLE_HOURS),
    columns=names(_COLUMNS),
    candles=table_name(CANDLES),
    scope=_SCOPE,
    key=names(_KEY),
    assignments=assignments((*VALUES, "minutes")),
    stored=names((*VALUES, "minutes"), of="stored"),
    made=names((*VALUES, "minutes"), of="excluded"),
)


def hour_bounds(rows: CandleArrays) -> tuple[datetime, datetime]:
    """The whole hours ``[first, end)`` that the rows lie in."""
    return _hour_of(rows.first), _hour_of(rows.last) + _HOUR


def put_hours(cursor: psycopg.ClientCursor[Any], rows: CandleArrays, *, exchange: str) -> None:
    """The hours of rows before which :func:`hour_bounds` held no candles of their series."""
    if TIMEFRAME not in rows.timeframes:
        return
    first, end = hour_bounds(rows)
    scope = {"exchange": exchange, "symbols": rows.symbols, "first": first, "end": end}
    cursor.execute(_FORGET, scope)  # of candles that somebody deleted
    columns, size = _hours(rows)
    with cursor.copy(_COPY) as copy:
        for block in binary_copy_blocks(
            [TextColumn(values=[exchange], codes=np.zeros(size, np.int8)), *columns], rows=size
        ):
            copy.write(block)


def refresh_hours(
    cursor: psycopg.ClientCursor[Any],
    rows: CandleArrays,
    *,
    exchange: str,
    written: Sequence[datetime | None],
) -> None:
    """The hours of rows that were stored among others.

    ``written``: the first and the last open time of the 1m candles that were new or changed, or None. If none
    was, and there are fewer minutes in the hours than in the frame, hours were lost: they are made again.
    """
    if TIMEFRAME not in rows.timeframes:
        return
    scope: dict[str, object] = {"exchange": exchange, "symbols": rows.symbols}
    first, last = written
    if first is not None and last is not None:
        scope |= {"first": _hour_of(first), "end": _hour_of(last) + _HOUR}
    else:
        first, end = hour_bounds(rows)
        scope |= {"first": first, "end": end}
        (minutes,) = cursor.execute(_MINUTES, scope).fetchone() or (0,)
        if minutes >= _size(rows):
            return
    scope |= {"timeframe": TIMEFRAME, "largest": _LARGEST_VOLUME}
    cursor.execute(_FROM_TABLE, scope)
    cursor.execute(_FORGET_EMPTY, scope)


def _size(rows: CandleArrays) -> int:
    return len(rows) if rows.timeframes == [TIMEFRAME] else int(_is_minute(rows).sum())


def _is_minute(rows: CandleArrays) -> NDArray[np.bool_]:
    timeframes = rows.columns["timeframe"]
    assert isinstance(timeframes, TextColumn)  # noqa: S101 - as frames.candle_arrays makes it
    return timeframes.codes == timeframes.values.index(TIMEFRAME)


def _hours(rows: CandleArrays) -> tuple[list[Column], int]:
    """Every column but the exchange's, in the order of the key; and how many hours."""
    symbols, times = rows.columns["symbol"], rows.columns["open_time"]
    assert isinstance(symbols, TextColumn)  # noqa: S101 - as frames.candle_arrays makes them
    assert isinstance(times, TimestampColumn)  # noqa: S101
    order = rows.order
    if rows.timeframes != [TIMEFRAME]:
        order = order[_is_minute(rows)[order]]
    codes = symbols.codes[order]
    hours = times.microseconds[order] // _HOUR_US
    starts = np.flatnonzero(
        np.concatenate([[True], (codes[1:] != codes[:-1]) | (hours[1:] != hours[:-1])])
    )
    ends = np.append(starts[1:], len(order))

    def values(name: str) -> NDArray[np.float64]:
        column = rows.columns[name]
        assert isinstance(column, Float8Column)  # noqa: S101
        return column.values[order]

    made = {
        "open": values("open")[starts],
        "high": np.maximum.reduceat(values("high"), starts),
        "low": np.minimum.reduceat(values("low"), starts),
        "close": values("close")[ends - 1],
        "volume": _sums(np.minimum(values("volume"), _LARGEST_VOLUME), starts, ends - starts),
    }
    columns: list[Column] = [
        TextColumn(values=symbols.values, codes=codes[starts]),
        TimestampColumn(microseconds=hours[starts] * _HOUR_US),
        *(Float8Column(values=made[name]) for name in VALUES),
        SmallintColumn(values=ends - starts),
    ]
    return columns, len(starts)


def _sums(
    values: NDArray[np.float64], starts: NDArray[np.intp], sizes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """One value after the other, as PostgreSQL adds: to the same bit, or each rewrite changes rows."""
    total = np.zeros(len(starts))
    for place in range(int(sizes.max())):
        there = sizes > place
        total[there] += values[starts[there] + place]
    return total


def _hour_of(time: datetime) -> datetime:
    return time - (time - _EPOCH) % _HOUR
