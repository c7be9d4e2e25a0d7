"""The shapes of candle frames: column names, dtypes, empty frames.

Three frames travel the corridor, each with the columns of the one before it:

- *observations* (raw zone): every row an exchange ever answered for a partition, in the order the
  answers came; values it could not represent are null, with the row as received in ``received``;
- *candles* (validated zone): the newest conforming observation of each candle;
- the tables of :mod:`crypto_pipeline.database`.

``exchange`` is not a column: a frame belongs to one exchange.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

PRICES: Final = ("open", "high", "low", "close")
VALUES: Final = (*PRICES, "volume")
KEY: Final = ("symbol", "timeframe", "open_time")

#: Time columns are UTC at millisecond resolution, as exchanges give them.
TIME_DTYPE: Final = pd.DatetimeTZDtype("ms", "UTC")

#: One validated candle. ``final``: the candle can no longer change by the exchange's clock.
CANDLE_DTYPES: Final[dict[str, object]] = {
    "symbol": "category",
    "timeframe": "category",
    "open_time": TIME_DTYPE,
    "open": "float64",
    "high": "float64",
    "low": "float64",
    "close": "float64",
    "volume": "float64",
    "final": "bool",
    "fetched_at": TIME_DTYPE,  # our clock, when the answer came
    "run_id": "category",
    "source": "category",  # ohlcv: the candle endpoint
    "clock_offset_ms": "int64",  # the exchange's clock minus ours at that moment
}

#: One observation. ``received``: the row as JSON where it is more than its six numbers can say.
OBSERVATION_DTYPES: Final[dict[str, object]] = {**CANDLE_DTYPES, "received": "str"}


def empty_observations() -> pd.DataFrame:
    """No observations, with every column and its dtype."""
    names = pd.CategoricalDtype(pd.Index([], dtype="str"))
    return pd.DataFrame(
        {
            name: pd.Series([], dtype=names if dtype == "category" else dtype)
            for name, dtype in OBSERVATION_DTYPES.items()
        }
    )


def as_observations(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with exactly the observation columns, in order and dtype."""
    return _typed(frame, OBSERVATION_DTYPES)


def as_candles(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with exactly the candle columns, in order and dtype."""
    return _typed(frame, CANDLE_DTYPES)


def _typed(frame: pd.DataFrame, dtypes: dict[str, object]) -> pd.DataFrame:
    """Columns that are of their dtype already are not made again."""
    columns = frame[list(dtypes)]
    other = {name: dtype for name, dtype in dtypes.items() if columns[name].dtype != dtype}
    return columns.astype(other) if other else columns


def concat(frames: list[pd.DataFrame], dtypes: dict[str, object]) -> pd.DataFrame:
    """Rows of all frames, in order; categories are united rather than turned into strings."""
    columns = {}
    for name, dtype in dtypes.items():
        parts = [frame[name] for frame in frames]
        if dtype == "category":
            united = pd.api.types.union_categoricals(parts)
            columns[name] = pd.Series(united)
        else:
            columns[name] = pd.concat(parts, ignore_index=True)
    return pd.DataFrame(columns)


def ranks(names: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """A category column as numbers that sort as its names do, whatever order its categories have."""
    categories = np.array(names.cat.categories, dtype=object)
    return np.argsort(np.argsort(categories))[names.cat.codes.to_numpy()]
