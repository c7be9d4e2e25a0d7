"""What the table of candles holds, and what it cost to get there."""

from __future__ import annotations

import pandas as pd
import psycopg

VALUES = ["open", "high", "low", "close", "volume"]
ALL = "SELECT * FROM candles ORDER BY 1, 2, 3, 4"
VERSIONS = "SELECT xmin::text, ctid::text, * FROM candles ORDER BY symbol, timeframe, open_time"

#: How many hours are not what their minutes make of them, or are missing, or of no minutes.
HOURS_OFF = """
WITH rolled AS (
    SELECT exchange, symbol, date_bin('1 hour', open_time, '2000-01-01 00:00:00+00') AS open_time,
        (array_agg(open ORDER BY open_time))[1] AS open, max(high) AS high, min(low) AS low,
        (array_agg(close ORDER BY open_time DESC))[1] AS close, sum(volume) AS volume,
        count(*) AS minutes
    FROM candles WHERE timeframe = '1m' GROUP BY 1, 2, 3
)
SELECT count(*) FROM rolled FULL JOIN candle_hours AS kept USING (exchange, symbol, open_time)
WHERE (rolled.open, rolled.high, rolled.low, rolled.close, rolled.minutes)
    IS DISTINCT FROM (kept.open, kept.high, kept.low, kept.close, kept.minutes::bigint)
    OR abs(rolled.volume - kept.volume) > 1e-9 * rolled.volume
"""


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
