"""Hours of 1m candles, kept beside them in the same transaction.

An hour is whatever its stored minutes make of it, and ``minutes`` says how many there are: nothing is
filled in. Rolling a year up takes a tenth of a second; reading it here takes a tenth of that. Where
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
    cursor.execute(_FORGET, _scope(rows, exchange))  # of candles that somebody deleted
    columns, size = _hours(rows)
    with cursor.copy(_COPY) as copy:
        for block in binary_copy_blocks(
            [TextColumn(values=[exchange], codes=np.zeros(size, np.int8)), *columns], rows=size
        ):
            copy.write(block)


def refresh_hours(cursor: psycopg.ClientCursor[Any], rows: CandleArrays, *, exchange: str) -> None:
    """The hours of rows that were stored among others."""
    if TIMEFRAME in rows.timeframes:
        given = {"timeframe": TIMEFRAME, "largest": _LARGEST_VOLUME}
        cursor.execute(_FROM_TABLE, {**_scope(rows, exchange), **given})


def _scope(rows: CandleArrays, exchange: str) -> dict[str, object]:
    first, end = hour_bounds(rows)
    return {"exchange": exchange, "symbols": rows.symbols, "first": first, "end": end}


def _hours(rows: CandleArrays) -> tuple[list[Column], int]:
    """Every column but the exchange's, in the order of the key; and how many hours."""
    symbols, timeframes = rows.columns["symbol"], rows.columns["timeframe"]
    times = rows.columns["open_time"]
    assert isinstance(symbols, TextColumn)  # noqa: S101 - as frames.candle_arrays makes them
    assert isinstance(timeframes, TextColumn)  # noqa: S101
    assert isinstance(times, TimestampColumn)  # noqa: S101
    order = rows.order
    if rows.timeframes != [TIMEFRAME]:
        order = order[timeframes.codes[order] == timeframes.values.index(TIMEFRAME)]
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
