"""What a user would write instead: each a whole program, run as a process of its own beside ours.

``practical``: ccxt, gather, binary COPY and nothing else (no checks, no state, no retry), the fastest
script that still is one. ``naive``: a loop over synchronous ccxt and ``executemany``. They share no
code with the pipeline, so that what makes ours faster does not make them faster.

``python -m crypto_pipeline_tests.benchmarks.peers practical URL EXCHANGE_JSON``
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

PAGE = 1_000
MINUTE_MS = 60_000
TABLE = "peer_candles"
COLUMNS = "exchange, symbol, timeframe, open_time, open, high, low, close, volume"

#: The same hypertable as ours, without our constraints.
SCHEMA = f"""
DROP TABLE IF EXISTS {TABLE};
CREATE TABLE {TABLE} (
    exchange text NOT NULL, symbol text NOT NULL, timeframe text NOT NULL,
    open_time timestamptz NOT NULL, open float8 NOT NULL, high float8 NOT NULL, low float8 NOT NULL,
    close float8 NOT NULL, volume float8 NOT NULL,
    PRIMARY KEY (exchange, symbol, timeframe, open_time)
);
"""
HYPERTABLE = (
    f"SELECT create_hypertable('{TABLE}', by_range('open_time', interval '7 days'),"
    " create_default_indexes => false)"
)


async def practical(url: str, job: dict[str, Any]) -> None:
    """All pages of a symbol gathered, one COPY a symbol."""
    import ccxt.async_support as ccxt
    import psycopg

    exchange = ccxt.binance(job["ccxt"])
    limit = asyncio.Semaphore(job["concurrency"])
    async with await psycopg.AsyncConnection.connect(url) as conn:
        types = ["text"] * 3 + ["timestamptz"] + ["float8"] * 5

        async def page(symbol: str, since: int) -> list[list[float]]:
            count = min(PAGE, (job["end"] - since) // MINUTE_MS)
            async with limit:
                return await exchange.fetch_ohlcv(
                    symbol,
                    "1m",
                    since=since,
                    limit=count,
                    params={"until": since + (count - 1) * MINUTE_MS},
                )

        writing = asyncio.Lock()

        async def series(symbol: str) -> None:
            starts = range(job["start"], job["end"], PAGE * MINUTE_MS)
            pages = await asyncio.gather(*(page(symbol, since) for since in starts))
            async with writing, conn.cursor() as cursor:
                async with cursor.copy(
                    f"COPY {TABLE} ({COLUMNS}) FROM STDIN (FORMAT binary)"
                ) as copy:
                    copy.set_types(types)
                    for rows in pages:
                        for time, *values in rows:
                            opened = datetime.fromtimestamp(time / 1_000, UTC)
                            await copy.write_row(("binance", symbol, "1m", opened, *values))
                await conn.commit()

        try:
            await exchange.load_markets()
            await asyncio.gather(*map(series, job["symbols"]))
        finally:
            await exchange.close()


def naive(url: str, job: dict[str, Any]) -> None:
    """One page after the other, ``executemany`` with ON CONFLICT DO NOTHING."""
    import ccxt
    import psycopg2

    exchange = ccxt.binance(job["ccxt"])
    conn = psycopg2.connect(url)
    statement = (
        f"INSERT INTO {TABLE} ({COLUMNS}) VALUES (%s, %s, %s, to_timestamp(%s / 1000.0),"
        " %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
    )
    for symbol in job["symbols"]:
        since = job["start"]
        while since < job["end"]:
            rows = exchange.fetch_ohlcv(symbol, "1m", since=since, limit=PAGE)
            rows = [row for row in rows if row[0] < job["end"]]
            if not rows:
                break
            with conn, conn.cursor() as cursor:
                cursor.executemany(statement, [("binance", symbol, "1m", *row) for row in rows])
            since = rows[-1][0] + MINUTE_MS
    conn.close()


if __name__ == "__main__":
    which, database, text = sys.argv[1:]
    if which == "practical":
        asyncio.run(practical(database, json.loads(text)))
    else:
        naive(database, json.loads(text))
