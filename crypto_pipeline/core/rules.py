"""The OHLCV rules, in their one home.

Each rule is one vectorised question asked of columns; the row model :class:`OHLCVData`, the frame
schema :data:`CANDLE_SCHEMA` and :func:`first_broken` all ask these same questions, and a property
test holds them against an oracle written separately. The ``CHECK`` constraints of the table
``candles`` repeat them in SQL.

The first rule a row breaks, in this order, names its rejection.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import pandera.pandas as pandera
from pydantic import AwareDatetime, BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from crypto_pipeline.core.candles import CANDLE_DTYPES, KEY
from crypto_pipeline.core.timeframes import DAY_MS, timeframe_ms, to_ms

#: A forming candle opens "now"; the exchange's clock is known to about a second.
FUTURE_TOLERANCE_MS: Final = 5_000

NO_TIME: Final = np.iinfo(np.int64).min

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the rules look at: arrays of one length. Times are int64 ms, ``NO_TIME`` where absent.

    ``partition_start`` is None where a row is judged without a partition.
    """

    open_time: npt.NDArray[np.int64]
    timeframe_ms: npt.NDArray[np.int64]
    exchange_now: npt.NDArray[np.int64]
    open: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    close: npt.NDArray[np.float64]
    volume: npt.NDArray[np.float64]
    partition_start: int | None = None

    @property
    def prices(self) -> tuple[npt.NDArray[np.float64], ...]:
        """Open, high, low, close."""
        return self.open, self.high, self.low, self.close


@dataclass(frozen=True)
class Rule:
    """A name users meet in ``rejected_candles``, what it demands, and who breaks it."""

    name: str
    demands: str
    broken: Callable[[Columns], Mask]


def _outside_partition(c: Columns) -> Mask:
    if c.partition_start is None:
        return np.zeros(len(c.open_time), np.bool_)
    return (c.open_time < c.partition_start) | (c.open_time >= c.partition_start + DAY_MS)


RULES: Final = (
    Rule("open_time_invalid", "open_time is an instant", lambda c: c.open_time == NO_TIME),
    Rule(
        "in_future",
        "open_time is not after the exchange's own clock",
        lambda c: c.open_time > c.exchange_now + FUTURE_TOLERANCE_MS,
    ),
    Rule(
        "off_grid",
        "open_time is a multiple of the timeframe",
        lambda c: c.open_time % c.timeframe_ms != 0,
    ),
    Rule("outside_partition", "open_time lies in the partition's UTC day", _outside_partition),
    Rule(
        "price_not_finite",
        "open, high, low and close are finite numbers",
        lambda c: ~np.logical_and.reduce([np.isfinite(price) for price in c.prices]),
    ),
    Rule(
        "price_not_positive",
        "open, high, low and close are above zero",
        lambda c: np.logical_or.reduce([price <= 0 for price in c.prices]),
    ),
    Rule("volume_not_finite", "volume is a finite number", lambda c: ~np.isfinite(c.volume)),
    Rule("volume_negative", "volume is not below zero", lambda c: c.volume < 0),
    Rule("high_below_low", "high is not below low", lambda c: c.high < c.low),
    Rule(
        "open_outside_range",
        "open lies within [low, high]",
        lambda c: (c.open < c.low) | (c.open > c.high),
    ),
    Rule(
        "close_outside_range",
        "close lies within [low, high]",
        lambda c: (c.close < c.low) | (c.close > c.high),
    ),
)

#: A second row for the same candle in the same answer; it needs the other rows to be seen.
DUPLICATE: Final = "duplicate"

RULE_DEMANDS: Final = {
    **{rule.name: rule.demands for rule in RULES},
    DUPLICATE: "an answer holds a candle once",
}


def first_broken(columns: Columns) -> npt.NDArray[np.int8]:
    """For each row the index into :data:`RULES` of the first rule it breaks, -1 for none."""
    found = np.full(len(columns.open_time), -1, np.int8)
    for index in range(len(RULES) - 1, -1, -1):
        found[RULES[index].broken(columns)] = index
    return found


def columns_of(
    frame: pd.DataFrame,
    *,
    partition_start: int | None = None,
    exchange_now: npt.NDArray[np.int64] | None = None,
) -> Columns:
    """The rules' view of a candle or observation frame.

    ``exchange_now`` defaults to the frame's ``fetched_at`` plus ``clock_offset_ms``.
    """
    timeframe = frame["timeframe"].astype("category").cat
    lengths = np.array([timeframe_ms(name) for name in timeframe.categories], np.int64)
    if exchange_now is None:
        exchange_now = times_ms(frame["fetched_at"]) + frame["clock_offset_ms"].to_numpy(np.int64)
    return Columns(
        open_time=times_ms(frame["open_time"]),
        timeframe_ms=lengths[timeframe.codes.to_numpy()],
        exchange_now=exchange_now,
        open=frame["open"].to_numpy(np.float64),
        high=frame["high"].to_numpy(np.float64),
        low=frame["low"].to_numpy(np.float64),
        close=frame["close"].to_numpy(np.float64),
        volume=frame["volume"].to_numpy(np.float64),
        partition_start=partition_start,
    )


def times_ms(times: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """A UTC time column as int64 milliseconds."""
    return times.dt.tz_convert(None).to_numpy("datetime64[ms]").view(np.int64)


class OHLCVData(BaseModel):
    """One candle that keeps every rule. Construction raises ``pydantic.ValidationError``.

    ``observed_at``: the exchange's clock when it gave the candle; ``partition_start``: first
    instant of the UTC day it was asked for, where that is known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)

    symbol: str
    timeframe: str
    open_time: AwareDatetime
    open: float
    high: float
    low: float
    close: float
    volume: float
    observed_at: AwareDatetime
    partition_start: AwareDatetime | None = None

    @model_validator(mode="after")
    def _keeps_the_rules(self) -> Self:
        def one(value: float) -> npt.NDArray[np.float64]:
            return np.array([value], np.float64)

        def instant(value: datetime) -> npt.NDArray[np.int64]:
            return np.array([to_ms(value)], np.int64)

        columns = Columns(
            open_time=instant(self.open_time),
            timeframe_ms=np.array([timeframe_ms(self.timeframe)], np.int64),
            exchange_now=instant(self.observed_at),
            open=one(self.open),
            high=one(self.high),
            low=one(self.low),
            close=one(self.close),
            volume=one(self.volume),
            partition_start=None if self.partition_start is None else to_ms(self.partition_start),
        )
        broken = first_broken(columns)[0]
        if broken >= 0:
            rule = RULES[broken]
            raise PydanticCustomError(
                "ohlcv_rule", "{rule}: {demands}", {"rule": rule.name, "demands": rule.demands}
            )
        return self


class _LastView(threading.local):
    """The rules' view of the frame a thread asked about last: eleven checks make it once."""

    def __init__(self) -> None:
        self._of: Callable[[], pd.DataFrame | None] = lambda: None
        self._columns: Columns | None = None

    def __call__(self, frame: pd.DataFrame) -> Columns:
        if self._columns is None or self._of() is not frame:
            self._of, self._columns = weakref.ref(frame), columns_of(frame)
        return self._columns


_VIEW: Final = _LastView()


def _kept(rule: Rule) -> Callable[[pd.DataFrame], pd.Series[bool]]:
    def check(frame: pd.DataFrame) -> pd.Series[bool]:
        return pd.Series(~rule.broken(_VIEW(frame)), index=frame.index)

    return check


def _unique(frame: pd.DataFrame) -> pd.Series[bool]:
    return ~frame.duplicated(list(KEY))


#: The validated frame: its columns, their types, the rules, and one row a candle.
CANDLE_SCHEMA: Final = pandera.DataFrameSchema(
    columns={name: pandera.Column(dtype, nullable=False) for name, dtype in CANDLE_DTYPES.items()},
    checks=[
        *(pandera.Check(_kept(rule), name=rule.name, error=rule.demands) for rule in RULES),
        pandera.Check(_unique, name=DUPLICATE, error="one row a candle"),
    ],
    strict=True,
    ordered=True,
)


def keeps_schema(frame: pd.DataFrame) -> bool:
    """Whether :data:`CANDLE_SCHEMA` has nothing to say of it: what most frames are asked, fast."""
    dtypes = frame.dtypes
    if list(frame.columns) != list(CANDLE_DTYPES):
        return False
    if any(dtypes[name] != dtype for name, dtype in CANDLE_DTYPES.items()):
        return False
    if any(frame[name].hasnans for name in frame.columns) or frame.duplicated(list(KEY)).any():
        return False
    try:
        columns = columns_of(frame)
    except ValueError:  # a timeframe that is none
        return False
    return bool((first_broken(columns) < 0).all())
