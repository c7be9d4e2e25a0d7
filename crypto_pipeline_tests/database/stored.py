"""What the table of candles holds, and what it cost to get there."""

from __future__ import annotations

import pandas as pd
import psycopg

VALUES = ["open", "high", "low", "close", "volume"]
ALL = "SELECT * FROM candles ORDER BY 1, 2, 3, 4"
VERSIONS = "SELECT xmin::text, ctid::text, * FROM candles ORDER BY symbol, timeframe, open_time"


def rows(conn: psycopg.Connection, query: str = ALL) -> list[tuple[object, ...]]:
    return conn.execute(query).fetchall()


def wal_position(conn: psycopg.Connection) -> int:
    row = conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(row[0])


def as_stored(frame: pd.DataFrame) -> list[tuple[object, ...]]:
    stored = frame.astype(dict.fromkeys(["symbol", "timeframe", "run_id", "source"], "str"))
    columns = ["symbol", "timeframe", "open_time", *VALUES, "fetched_at", "run_id", "source"]
    tuples = stored[columns].sort_values(["symbol", "timeframe", "open_time"]).to_numpy(object)
    return [("binance", *row) for row in tuples]
