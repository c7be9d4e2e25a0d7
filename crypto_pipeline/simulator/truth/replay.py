"""Candles replayed from Parquet files, to the bit.

A folder holds ``<exchange key>-<BASE>_<QUOTE>-1m-<anything>.parquet`` with the columns
``open_time, open, high, low, close, volume``; several files of a series are joined, a later file
(by name) wins where they overlap. A minute that is not in the files does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator.truth.candles import Candles, Floats
from crypto_pipeline.simulator.truth.noise import key_of

_COLUMNS = ["open_time", "open", "high", "low", "close", "volume"]
_MOST_DECIMALS = 10


@dataclass(slots=True)
class ReplaySource:
    """The recorded minutes of one symbol, all in memory."""

    candles: Candles
    key: int
    price_decimals: int
    volume_decimals: int

    @property
    def span(self) -> tuple[int, int]:
        """``[start, end)`` of the open times that exist, milliseconds."""
        return int(self.candles.time[0]), int(self.candles.time[-1]) + MINUTE_MS

    def minutes(self, start_ms: int, end_ms: int) -> Candles:
        """Recorded candles that open in ``[start_ms, end_ms)``, without trade sums."""
        return self.candles.between(start_ms, end_ms)


def load_replay(folder: Path, *, exchange: str, symbol: str, seed: int) -> ReplaySource:
    """Read the files of one series.

    Raises:
        ConfigError: no such file, or one that does not hold 1m candles.
    """
    pattern = f"{exchange}-{symbol.replace('/', '_')}-1m-*.parquet"
    paths = sorted(folder.glob(pattern))
    if not paths:
        found = ", ".join(path.name for path in sorted(folder.glob("*.parquet"))) or "none"
        raise ConfigError(
            f"No file {pattern} in {folder} to replay {symbol} on {exchange} (files there: {found})."
        )
    columns = np.concatenate([_read(path) for path in paths], axis=1)
    columns = columns[:, np.argsort(columns[0], kind="stable")]
    last_of_its_time = np.diff(columns[0], append=np.inf) != 0  # the later file's
    columns = columns[:, last_of_its_time]
    times, (opened, high, low, close, volume) = columns[0].astype(np.int64), columns[1:]
    if not len(times) or (times % MINUTE_MS).any():
        raise ConfigError(f"{folder / pattern} must hold candles that open on whole minutes.")
    none = np.zeros(len(times))
    candles = Candles(
        times,
        opened,
        high,
        low,
        close,
        volume,
        np.zeros(len(times), dtype=np.int64),
        none,
        none,
        none,
    )
    return ReplaySource(
        candles=candles,
        key=key_of(seed, exchange, symbol),
        price_decimals=decimals_of(np.concatenate([opened, high, low, close])),
        volume_decimals=decimals_of(volume),
    )


def decimals_of(values: Floats) -> int:
    """The fewest decimals that write every value exactly; the most we try if none does."""
    for decimals in range(_MOST_DECIMALS):
        scale = 10.0**decimals
        if bool((np.rint(values * scale) / scale == values).all()):
            return decimals
    return _MOST_DECIMALS


def _read(path: Path) -> Floats:
    """The columns as rows of a matrix (a float64 holds any time in milliseconds exactly)."""
    try:
        table = parquet.read_table(path, columns=_COLUMNS)
        times = table["open_time"]
        if pa.types.is_timestamp(times.type):
            times = times.cast(pa.timestamp("ms", tz=times.type.tz)).cast(pa.int64())
        numbers = [table[name].to_numpy().astype(float) for name in _COLUMNS[1:]]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"Cannot read {path} as candles ({', '.join(_COLUMNS)}): {error}"
        ) from error
    return np.vstack([times.to_numpy().astype(float), *numbers])
