"""Keeping what validation refused: each row once, however often it is received or validated.

A row's identity is a digest of partition, series, rule and the row as received, with its place
among equal rows of the same answer. When it was asked for does not count: a tick that meets the
same bad row every minute adds it once, with the first run that received it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pandas as pd
from psycopg import sql

from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import LOCK, lock_keys, names, table_name
from crypto_pipeline.database.tables import (
    MESSAGE_LIMIT,
    RECEIVED_LIMIT,
    REJECTED_CANDLES,
    VALUES,
)
from crypto_pipeline.database.texts import cut, representable

if TYPE_CHECKING:
    from datetime import date

    import psycopg

BATCH_ROWS: Final = 10_000

_CONSTANT: Final = ("exchange", "partition_date")
_SENT: Final = (
    "rejection_id",
    "symbol",
    "timeframe",
    "open_time",
    *VALUES,
    "received",
    "rule",
    "message",
    "run_id",
    "fetched_at",
)
_INSERT: Final = sql.SQL(
    "INSERT INTO {table} ({columns})"
    " SELECT %(exchange)s, %(partition_date)s::date, * FROM unnest(%(rejection_id)s::uuid[],"
    " %(symbol)s::text[], %(timeframe)s::text[], %(open_time)s::timestamptz[],"
    " %(open)s::float8[], %(high)s::float8[], %(low)s::float8[], %(close)s::float8[],"
    " %(volume)s::float8[], %(received)s::text[], %(rule)s::text[], %(message)s::text[],"
    " %(run_id)s::text[], %(fetched_at)s::timestamptz[])"
    " ON CONFLICT DO NOTHING"
).format(table=table_name(REJECTED_CANDLES), columns=names((*_CONSTANT, *_SENT)))

#: Instants a timestamptz and Python's datetime can both hold.
_FIRST_INSTANT: Final = pd.Timestamp("0001-01-02", tz="UTC").as_unit("ms")
_LAST_INSTANT: Final = pd.Timestamp("9999-12-30", tz="UTC").as_unit("ms")


def record_rejected(
    conn: psycopg.Connection, frame: pd.DataFrame, *, exchange: str, partition_date: date
) -> int:
    """Bring the refused rows of one partition into ``rejected_candles``.

    Args:
        conn: an autocommit connection of :mod:`crypto_pipeline.database.connection`.
        frame: symbol, timeframe, open_time, open … volume, received, rule, message, fetched_at,
            run_id. Missing numbers and times become NULL; long texts are cut.
        exchange: the frame's exchange.
        partition_date: the UTC day that was asked for.

    Returns:
        How many rows were not there yet.
    """
    if frame.empty:
        return 0
    columns = _columns(frame, exchange=exchange, partition_date=partition_date)
    constant = {"exchange": exchange, "partition_date": partition_date}
    day = partition_date.isoformat()
    keys = lock_keys(purpose="rejected", exchange=exchange, parts=[day])
    added = 0
    doing = f"record {len(frame):,} refused rows of {exchange!r} on {day}"
    with database_errors(conn, doing), conn.transaction():
        conn.execute(LOCK, {"keys": keys})
        for start in range(0, len(frame), BATCH_ROWS):
            batch = {name: column[start : start + BATCH_ROWS] for name, column in columns.items()}
            added += conn.execute(_INSERT, {**constant, **batch}).rowcount
    return added


def _columns(frame: pd.DataFrame, *, exchange: str, partition_date: date) -> dict[str, list[Any]]:
    texts = {
        name: [representable(str(text)) for text in frame[name]]
        for name in ("symbol", "timeframe", "received", "rule", "message", "run_id")
    }
    fetched_at = frame["fetched_at"].tolist()
    partition = (exchange, partition_date.isoformat())
    identities = zip(
        texts["symbol"], texts["timeframe"], texts["rule"], texts["received"], strict=True
    )
    seen: Counter[tuple[object, ...]] = Counter()
    digests = []
    for identity, answer in zip(
        identities, zip(fetched_at, texts["run_id"], strict=True), strict=True
    ):
        place = seen[*identity, *answer]
        seen[*identity, *answer] += 1
        digests.append(_digest(*partition, *identity, str(place)))
    open_time = frame["open_time"]
    open_time = open_time.where(open_time.between(_FIRST_INSTANT, _LAST_INSTANT))
    return {
        **texts,
        "rejection_id": digests,
        "received": [cut(text, RECEIVED_LIMIT) for text in texts["received"]],
        "message": [cut(text, MESSAGE_LIMIT) for text in texts["message"]],
        "open_time": _nullable(open_time),
        "fetched_at": fetched_at,
        **{name: _nullable(frame[name].astype("float64")) for name in VALUES},
    }


def _nullable(series: pd.Series[Any]) -> list[Any]:
    missing = series.isna()
    return [None if gone else value for value, gone in zip(series.tolist(), missing, strict=True)]


def _digest(*parts: str) -> UUID:
    return UUID(bytes=hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest())
