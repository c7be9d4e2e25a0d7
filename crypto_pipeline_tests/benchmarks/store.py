"""The table by itself: how fast it is written and read, and what a candle takes.

``python -m crypto_pipeline_tests.benchmarks.store --million 50``: fills ``candles`` of a TimescaleDB of
its own with two years of 1m candles of as many series as that takes, and times the upsert against a raw
COPY of the same frame, validation, the lake, and the queries people ask, each many times, warm; and what
becomes of each with 4 and 16 times as much.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from psycopg import sql

from crypto_pipeline.core.candles import CANDLE_DTYPES, OBSERVATION_DTYPES
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.copy_binary import binary_copy_blocks
from crypto_pipeline.database.frames import candle_arrays
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.lake.parquet import from_parquet, to_parquet
from crypto_pipeline.local import LocalPostgres

DAYS = 730
DAY = date(2024, 6, 1)
SYMBOLS_A_DAY = 50
RUNS = 20
#: How growth is looked at: of rows that are written, and of those that queries run on.
TIMES = (1, 4, 16)
FEW_SYMBOLS = 10

#: Two years of minutes of one series, made where they are stored.
FILL = sql.SQL(
    "INSERT INTO candles SELECT %(exchange)s, %(symbol)s, '1m', t, 100 + x, 102 + x, 99 + x, 101 + x,"
    " 10 * x, t + interval '1 minute', 'benchmark', 'ohlcv'"
    " FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 minute',"
    " interval '1 minute') AS t, LATERAL (SELECT random() AS x WHERE t IS NOT NULL) AS noise"
)

#: As a migration makes those of candles that are there.
HOURS = (
    "INSERT INTO candle_hours SELECT exchange, symbol, time_bucket('1 hour', open_time) AS hour,"
    " first(open, open_time), max(high), min(low), last(close, open_time), sum(volume), count(*)"
    " FROM candles WHERE exchange = %(exchange)s AND symbol = %(symbol)s GROUP BY 1, 2, 3"
)

#: What people ask; ``p95`` in milliseconds is what we promise for 50 million rows, warm.
LAST_CANDLES = (
    "SELECT open_time, open, high, low, close, volume FROM candles WHERE exchange = 'e0'"
    " AND symbol = 'S002/USDT' AND timeframe = '1m' ORDER BY open_time DESC LIMIT 1000"
)
BY_THE_HOUR = (
    "SELECT open_time, open, high, low, close, volume, minutes FROM candle_hours WHERE exchange = 'e0'"
    " AND symbol = 'S002/USDT' AND open_time >= '2023-06-01' AND open_time < '2024-06-01'"
    " ORDER BY open_time"
)
#: The same without that table; promised to nobody.
ROLLED_UP = (
    "SELECT time_bucket('1 hour', open_time) AS hour, first(open, open_time) AS open,"
    " max(high) AS high, min(low) AS low, last(close, open_time) AS close, sum(volume) AS volume"
    " FROM candles WHERE exchange = 'e0' AND symbol = 'S002/USDT' AND timeframe = '1m'"
    " AND open_time >= '2023-06-01' AND open_time < '2024-06-01' GROUP BY hour ORDER BY hour"
)
ONE_DAY = (
    "SELECT symbol, open_time, open, high, low, close, volume FROM candles"
    " WHERE exchange = 'e0' AND open_time >= '2024-03-01' AND open_time < '2024-03-02'"
    " ORDER BY symbol, open_time"
)
QUERIES = {
    "the last 1,000 candles of a series": (LAST_CANDLES, 10),
    "a year of 1m rolled up to 1h": (BY_THE_HOUR, 100),
    "the latest candle of every series": ("SELECT * FROM latest_candles", 50),
    "a day of an exchange": (ONE_DAY, 200),
}
BESIDE = {"the same year from its minutes": (ROLLED_UP, math.inf)}


def frame_of_a_day(symbols: int, day: date) -> pd.DataFrame:
    """Observations as an exchange gave them."""
    minutes = symbols * 1_440
    random = np.random.default_rng(1)
    start = day_start_ms(day)
    times = np.tile(np.arange(1_440) * MINUTE_MS + start, symbols)
    opened, closed = (random.uniform(100, 200, minutes).round(2) for _ in range(2))
    names = pd.Index([f"S{number:03}/USDT" for number in range(symbols)], dtype="str")
    fetched = pd.DatetimeIndex(np.full(minutes, start + 2 * DAY_MS).view("datetime64[ms]"))

    def one(text: str) -> pd.Categorical:
        return pd.Categorical.from_codes(np.zeros(minutes, int), pd.Index([text], dtype="str"))

    columns = {
        "symbol": pd.Categorical.from_codes(np.repeat(np.arange(symbols), 1_440), names),
        "timeframe": one("1m"),
        "open_time": pd.DatetimeIndex(times.view("datetime64[ms]")).tz_localize("UTC"),
        "open": opened,
        "high": np.maximum(opened, closed) + 1,
        "low": np.minimum(opened, closed) - 1,
        "close": closed,
        "volume": random.uniform(0, 50, minutes).round(4),
        "final": np.ones(minutes, bool),
        "fetched_at": fetched.tz_localize("UTC"),
        "run_id": one("r" * 36),
        "source": one("ohlcv"),
        "clock_offset_ms": np.zeros(minutes, np.int64),
        "received": pd.array([None] * minutes, dtype="str"),
    }
    return pd.DataFrame({name: columns[name] for name in OBSERVATION_DTYPES})


def seconds(work: Callable[[], object], times: int) -> list[float]:
    """Of each of several times, after one that does not count."""
    work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def in_memory() -> dict[str, float]:
    """Validation and the lake, on one core; rows a second."""
    observations = frame_of_a_day(SYMBOLS_A_DAY, DAY)
    rows = len(observations)
    spoiled = observations.copy()
    spoiled.loc[spoiled.index[::100], "high"] = 1.0  # one in a hundred is refused
    candles = validate(observations, day=DAY).candles
    raw = to_parquet(observations, OBSERVATION_DTYPES, {})
    jobs: dict[str, Callable[[], object]] = {
        "validation, rows/s": lambda: validate(observations, day=DAY),
        "validation with 1 % refused, rows/s": lambda: validate(spoiled, day=DAY),
        "lake write, rows/s": lambda: to_parquet(candles, CANDLE_DTYPES, {}),
        "lake read, rows/s": lambda: from_parquet(raw, OBSERVATION_DTYPES, where="it"),
    }
    found = {name: rows / statistics.median(seconds(job, 7)) for name, job in jobs.items()}
    return {**found, "lake bytes a candle": len(raw) / rows}


def writes(conn: psycopg.Connection) -> dict[str, float]:
    """The upsert against a raw COPY of the same frame, in turn; ratios of rows a second."""
    frame = validate(frame_of_a_day(SYMBOLS_A_DAY, DAY), day=DAY).candles
    start, end = utc(day_start_ms(DAY)), utc(day_start_ms(DAY) + DAY_MS)
    ways: dict[str, list[float]] = {"copy": [], "empty": [], "unchanged": [], "1 % changed": []}

    def timed(way: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        ways[way].append(time.perf_counter() - began)

    for number in range(7):
        exchange = f"w{number}"

        def store(exchange: str = exchange) -> Any:
            return upsert_candles(conn, frame, exchange=exchange, start=start, end=end)

        timed("copy", lambda: _raw_copy(conn, frame, f"c{number}"))  # noqa: B023 - called at once
        timed("empty", store)
        store()  # hint bits
        before = _versions(conn, exchange)
        timed("unchanged", store)
        assert _versions(conn, exchange) == before, "a row that did not change got a new version"
        conn.execute(
            "UPDATE candles SET volume = volume + 1 WHERE exchange = %s AND extract(minute FROM"
            " open_time) = 7 AND extract(hour FROM open_time) < 14",
            [exchange],
        )
        timed("1 % changed", store)
    conn.execute("TRUNCATE candles, candle_hours, candle_series")
    copy = statistics.median(ways["copy"])
    return {
        "raw COPY, rows/s": len(frame) / copy,
        **{
            f"upsert, {way}, of raw COPY": copy / statistics.median(taken)
            for way, taken in ways.items()
            if way != "copy"
        },
    }


def _raw_copy(conn: psycopg.Connection, frame: pd.DataFrame, exchange: str) -> None:
    """The fastest COPY there is here, without any question asked."""
    start = day_start_ms(DAY)
    rows = candle_arrays(
        frame, start=utc(start), end=utc(start + DAY_MS), texts=("run_id", "source")
    )
    columns = [rows.constant(exchange), *rows.columns.values()]
    names = sql.SQL(", ").join(map(sql.Identifier, ["exchange", *rows.columns]))
    with (
        conn.cursor() as cursor,
        cursor.copy(sql.SQL("COPY candles ({}) FROM STDIN (FORMAT binary)").format(names)) as copy,
    ):
        for block in binary_copy_blocks(columns, rows=len(rows), order=rows.order):
            copy.write(block)


def _versions(conn: psycopg.Connection, exchange: str) -> Any:
    return conn.execute(
        "SELECT count(*), max(xmin::text::bigint) FROM candles WHERE exchange = %s", [exchange]
    ).fetchone()


def queries(conn: psycopg.Connection) -> dict[str, dict[str, float]]:
    """Median and 95th percentile of each, ms."""
    found = {}
    for name, (query, promised) in {**QUERIES, **BESIDE}.items():
        taken = sorted(seconds(lambda: conn.execute(query).fetchall(), RUNS))  # noqa: B023
        found[name] = {
            "median ms": round(statistics.median(taken) * 1_000, 1),
            "p95 ms": round(taken[int(RUNS * 0.95) - 1] * 1_000, 1),
            "promised ms": None if math.isinf(promised) else promised,
        }
    return found


def fill(conn: psycopg.Connection, series: int, *, known: int = 0) -> None:
    """Series by series, after those that are there."""
    start = datetime(2022, 7, 1, tzinfo=UTC)
    end = start + timedelta(days=DAYS)
    for number in range(known, series):
        values = {"exchange": f"e{number % 2}", "symbol": f"S{number:03}/USDT"}
        conn.execute(FILL, {**values, "start": start, "end": end})
        conn.execute(
            "INSERT INTO candle_series (exchange, symbol, timeframe) VALUES (%(exchange)s, %(symbol)s, '1m')",
            values,
        )
        conn.execute(HOURS, values)
        sys.stderr.write(f"\r{number + 1} series")
        sys.stderr.flush()
    sys.stderr.write("\n")
    conn.execute("VACUUM ANALYZE candles")
    conn.execute("VACUUM ANALYZE candle_hours")


def growth(conn: psycopg.Connection) -> dict[str, dict[str, float]]:
    """Microseconds a row of 1, 4 and 16 times as many rows, all of one exchange's day."""
    found: dict[str, dict[str, float]] = {}
    start = utc(day_start_ms(DAY))
    scope: dict[str, Any] = {"start": start, "end": start + timedelta(days=1)}
    for times in TIMES:
        observations = frame_of_a_day(times * FEW_SYMBOLS, DAY)
        candles = validate(observations, day=DAY).candles
        raw = to_parquet(observations, OBSERVATION_DTYPES, {})
        names = (f"g{times}n{number}" for number in range(100))  # each an empty exchange
        jobs: dict[str, Callable[[], object]] = {
            "validation": partial(validate, observations, day=DAY),
            "lake write": partial(to_parquet, candles, CANDLE_DTYPES, {}),
            "lake read": partial(from_parquet, raw, OBSERVATION_DTYPES, where="it"),
            "upsert, empty": lambda: upsert_candles(conn, candles, exchange=next(names), **scope),  # noqa: B023
            "upsert, unchanged": partial(
                upsert_candles, conn, candles, exchange=f"g{times}", **scope
            ),
        }
        for name, job in jobs.items():
            a_row = statistics.median(seconds(job, 5)) / len(observations)
            found.setdefault(name, {})[f"{times}x"] = round(a_row * 1e6, 3)
    conn.execute("TRUNCATE candles, candle_hours, candle_series")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--million", type=float, default=50, help="rows the queries run on")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, LocalPostgres(Path(folder) / "home") as server:
        url = server.url("crypto_pipeline")
        upgrade(url)
        with connect(url) as conn:
            figures: dict[str, Any] = {**in_memory(), **writes(conn)}
            grown = growth(conn)
            series = max(4, round(options.million * 1_000_000 / (DAYS * 1_440)))
            known, by_size = 0, {}
            for times in TIMES:
                size = max(4, series * times // TIMES[-1])  # S002 is asked for
                fill(conn, size, known=known)
                known = size
                by_size[f"{size * DAYS * 1_440:,} rows"] = asked = queries(conn)
            (size,) = conn.execute("SELECT hypertable_size('candles')").fetchone() or (0,)
            figures["table bytes a candle"] = size / (series * DAYS * 1_440)
    for name, figure in figures.items():
        sys.stdout.write(f"{name:40} {figure:14,.2f}\n")
    for name, each in grown.items():
        sys.stdout.write(f"{name + ', us a row':40} {each}\n")
    for rows, each in by_size.items():
        sys.stdout.write(f"{rows}\n")
        for name, one in each.items():
            sys.stdout.write(f"  {name:38} {one}\n")
    if options.json:
        told = {**figures, "us a row": grown, "queries": by_size}
        options.json.write_text(json.dumps(told, indent=2))
    held = [asked[name]["p95 ms"] <= promised for name, (_, promised) in QUERIES.items()]
    held.append(min(v for k, v in figures.items() if k.startswith("upsert")) >= 0.6)
    held.append(min(v for k, v in figures.items() if k.startswith("validation")) >= 2_000_000)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
