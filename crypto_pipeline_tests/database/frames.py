"""Candle frames for tests of the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

START = datetime(2024, 3, 9, tzinfo=UTC)
WINDOW: dict[str, Any] = {
    "exchange": "binance",
    "start": START,
    "end": START + timedelta(days=1),
}
TIME = pd.DatetimeTZDtype("ms", "UTC")


def candles(
    symbols: list[str], *, minutes: int = 3, seed: int = 0, run_id: str = "run", first: int = 0
) -> pd.DataFrame:
    """``minutes`` candles of each symbol from minute ``first`` of the day on."""
    rng = np.random.default_rng(seed)
    size = len(symbols) * minutes
    low = rng.uniform(1, 2, size)
    times = np.datetime64(START.replace(tzinfo=None), "ms") + np.arange(
        first, first + minutes
    ) * np.timedelta64(60_000, "ms")
    frame = pd.DataFrame(
        {
            "symbol": np.repeat(symbols, minutes),
            "timeframe": "1m",
            "open_time": pd.DatetimeIndex(np.tile(times, len(symbols)), tz="UTC"),
            "open": low + 0.5,
            "high": low + 1,
            "low": low,
            "close": low + 0.25,
            "volume": rng.uniform(0, 100, size),
            "fetched_at": pd.Timestamp("2024-03-10T00:00:07.123Z"),
            "run_id": run_id,
            "source": "ohlcv",
        }
    )
    texts = dict.fromkeys(["symbol", "timeframe", "run_id", "source"], "category")
    return frame.astype({"open_time": TIME, "fetched_at": TIME, **texts})


def changed(frame: pd.DataFrame, rows: list[int], *, run_id: str = "later") -> pd.DataFrame:
    """The frame asked for again, with other volumes in some rows."""
    volume = frame["volume"].copy()
    volume.iloc[rows] += 1
    later = frame["fetched_at"] + pd.Timedelta(minutes=1)
    return frame.assign(
        volume=volume, fetched_at=later, run_id=pd.Categorical([run_id] * len(frame))
    )
