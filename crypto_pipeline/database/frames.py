"""From a candle frame to arrays the database takes, in primary-key order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from crypto_pipeline.database.copy_binary import (
    Column,
    Float8Column,
    TextColumn,
    TimestampColumn,
)
from crypto_pipeline.database.tables import VALUES
from crypto_pipeline.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class CandleArrays:
    """The rows of one exchange.

    Attributes:
        columns: by name, each as long as the frame.
        order: positions of the rows in primary-key order.
        symbols: those that occur.
        timeframes: those that occur.
        series: the pairs of symbol and timeframe that occur, sorted.
        first: the first open time.
        last: the last open time.
    """

    columns: dict[str, Column]
    order: NDArray[np.intp]
    symbols: list[str]
    timeframes: list[str]
    series: list[tuple[str, str]]
    first: datetime
    last: datetime

    def __len__(self) -> int:
        return len(self.order)

    def constant(self, text: str) -> TextColumn:
        """A column with the same text in every row."""
        return TextColumn(values=[text], codes=np.zeros(len(self), np.int8))


def candle_arrays(
    frame: pd.DataFrame, *, start: datetime, end: datetime, texts: Sequence[str]
) -> CandleArrays:
    """Take a frame apart; ``texts`` are the text columns wanted beside symbol and timeframe.

    Raises:
        DatabaseError: an empty value, a forming candle, an open time outside ``[start, end)``, or
            a candle that comes twice: this is not one partition of candles, whatever its values.
    """
    if "final" in frame and not frame["final"].all():
        raise _not_storable(f"{int((~frame['final']).sum())} candles are not final")
    symbols, timeframes = _text_column(frame, "symbol"), _text_column(frame, "timeframe")
    open_time = _microseconds(frame, "open_time")
    columns: dict[str, Column] = {
        "symbol": symbols,
        "timeframe": timeframes,
        "open_time": TimestampColumn(microseconds=open_time),
        **{name: Float8Column(values=frame[name].to_numpy(np.float64)) for name in VALUES},
        "fetched_at": TimestampColumn(microseconds=_microseconds(frame, "fetched_at")),
        **{name: _text_column(frame, name) for name in texts},
    }
    first, last = int(open_time.min()), int(open_time.max())
    if first < _since_epoch(start) or last >= _since_epoch(end):
        raise _not_storable(
            f"open times from {np.datetime64(first, 'us')} to {np.datetime64(last, 'us')}"
            f" leave the window [{start.isoformat()}, {end.isoformat()})"
        )
    symbol, timeframe = _ranks(symbols), _ranks(timeframes)
    order = np.lexsort((open_time, timeframe, symbol))
    again = np.ones(max(len(order) - 1, 0), np.bool_)
    for key in (symbol, timeframe, open_time):
        again &= key[order[1:]] == key[order[:-1]]
    if again.any():
        twice = frame.iloc[order[int(again.argmax())]]
        raise _not_storable(
            f"{twice['symbol']} {twice['timeframe']} {twice['open_time'].isoformat()}"
            f" comes twice ({int(again.sum())} such rows)"
        )
    return CandleArrays(
        columns=columns,
        order=order,
        symbols=_occurring(symbols),
        timeframes=_occurring(timeframes),
        series=_pairs(symbols, timeframes),
        first=_EPOCH + timedelta(microseconds=first),
        last=_EPOCH + timedelta(microseconds=last),
    )


def newest_of_each_series(frame: pd.DataFrame) -> pd.DataFrame:
    """The row that opened last in each series, and of its answers the latest."""
    return (
        frame.sort_values(["open_time", "fetched_at"], kind="stable")
        .drop_duplicates(["symbol", "timeframe"], keep="last")
        .astype({"symbol": "str", "timeframe": "str", "run_id": "str"})
    )


def _text_column(frame: pd.DataFrame, name: str) -> TextColumn:
    series = frame[name]
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes, values = series.cat.codes.to_numpy(), series.cat.categories
    else:
        codes, values = pd.factorize(series)
    if (codes < 0).any():
        raise _not_storable(f"{name} is empty in {int((codes < 0).sum())} rows")
    texts = [str(value) for value in values]
    for text in texts:
        if "\0" in text or text.encode(errors="ignore").decode() != text:
            raise _not_storable(f"{name} {text!r} is not text PostgreSQL can hold")
    return TextColumn(values=texts, codes=codes)


def _microseconds(frame: pd.DataFrame, name: str) -> NDArray[np.int64]:
    series = frame[name]
    if series.isna().any():
        raise _not_storable(f"{name} is empty in {int(series.isna().sum())} rows")
    return (
        series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").view(np.int64)
    )


def _since_epoch(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(microseconds=1)


def _ranks(column: TextColumn) -> NDArray[np.intp]:
    """For each row the place of its text among the sorted texts."""
    places = np.empty(len(column.values), np.intp)
    places[np.argsort(np.array(column.values, object))] = np.arange(len(places))
    return places[column.codes]


def _occurring(column: TextColumn) -> list[str]:
    return [column.values[code] for code in np.unique(column.codes)]


def _pairs(first: TextColumn, second: TextColumn) -> list[tuple[str, str]]:
    width = max(1, len(second.values))
    found = np.unique(first.codes.astype(np.int64) * width + second.codes)
    return sorted((first.values[code // width], second.values[code % width]) for code in found)


def _not_storable(what: str) -> DatabaseError:
    return DatabaseError(
        f"The frame cannot be stored as candles: {what}.",
        hint="this is a mistake of the program that made the frame; nothing was stored.",
        rerun_helps=False,
    )
