"""Merging a new answer into what the raw zone already holds of a partition.

The raw zone is a log: an observation that says something new about a candle is added, one that
repeats the answer before it is not, and only a forming candle is replaced. Nothing else ever
leaves. Merging the same answers again changes nothing, and an answer that comes late never replaces
a newer one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, as_observations, concat, ranks
from crypto_pipeline.core.rules import NO_TIME, times_ms

_Mask = npt.NDArray[np.bool_]
_Numbers = npt.NDArray[np.int64]


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The observations of a partition after one more answer (or several).

    What one answer says of one candle, usually a row, is one *statement*: kept or dropped whole,
    so that a duplicate in an answer stays recognisable as one.

    Args:
        old: what the partition holds.
        new: observations of answers given since, or of answers that were merged before.

    Returns:
        Both, in key order and within a candle oldest first, without

        - new rows that are there already,
        - new statements that repeat the statement before them,
        - forming rows of a candle that has a final row,
        - forming rows but those of the newest statement, if there are only such.
    """
    if new.empty:
        return old
    if old.empty:
        order = _order_of_single_rows(new)
        if order is not None:
            return new.iloc[order].reset_index(drop=True)
    both = concat([old, new], OBSERVATION_DTYPES)
    order, keys = _key_order(both)
    rows = _Rows.of(both, order, keys, old=len(old))
    rows = rows.take(~_there_already(rows))
    settled = np.zeros(rows.candle[-1] + 1, np.bool_)
    settled[rows.candle[rows.final]] = True
    rows = rows.take(rows.final | ~settled[rows.candle])
    rows = rows.take(~(rows.added & _repeats(rows)))
    newest = np.zeros(rows.candle[-1] + 1, np.int64)
    np.maximum.at(newest, rows.candle, rows.statement)
    rows = rows.take(rows.final | (rows.statement == newest[rows.candle]))
    return both.iloc[rows.position].reset_index(drop=True)


def _order_of_single_rows(frame: pd.DataFrame) -> npt.NDArray[np.intp] | None:
    """Key order of rows that all have a time and of which no two are of one candle; else None."""
    timeframes = len(frame["timeframe"].cat.categories)
    series = ranks(frame["symbol"]) * timeframes + ranks(frame["timeframe"])
    times = times_ms(frame["open_time"])
    if times.min() < 0 or times.max() >= 1 << 48 or series.max() >= 1 << 15:
        return None
    keys = (series << 48) + times
    order = np.argsort(keys, kind="stable")  # pages are in order: it only merges them
    keys = keys[order]
    return order if (keys[1:] > keys[:-1]).all() else None


def in_order(observations: pd.DataFrame) -> pd.DataFrame:
    """Key order, and within a candle the order in which the answers came."""
    order, _ = _key_order(observations)
    return as_observations(observations.iloc[order].reset_index(drop=True))


class _Rows(NamedTuple):
    """Observations in order, as arrays of one length.

    ``position``: in the frame; ``candle`` and ``statement``: numbers that rise with the rows;
    ``final``: never replaced, as rows without a time are not; ``added``: not from the old frame.
    """

    position: npt.NDArray[np.intp]
    candle: _Numbers
    statement: _Numbers
    final: _Mask
    added: _Mask
    values: npt.NDArray[np.float64]
    received: _Numbers

    @classmethod
    def of(
        cls, frame: pd.DataFrame, order: npt.NDArray[np.intp], keys: list[_Numbers], *, old: int
    ) -> _Rows:
        keys = [key[order] for key in keys]
        return cls(
            position=order,
            candle=np.cumsum(_starts(keys[:3])) - 1,
            statement=np.cumsum(_starts(keys)) - 1,
            final=frame["final"].to_numpy()[order] | (keys[2] == NO_TIME),
            added=order >= old,
            values=frame[list(VALUES)].to_numpy()[order],
            received=pd.factorize(frame["received"])[0][order],
        )

    def take(self, which: _Mask) -> _Rows:
        return self if which.all() else _Rows._make(array[which] for array in self)


def _key_order(frame: pd.DataFrame) -> tuple[npt.NDArray[np.intp], list[_Numbers]]:
    """The order of rows, and what it is by: the candle's three keys, the answer's two."""
    keys = [
        ranks(frame["symbol"]),
        ranks(frame["timeframe"]),
        times_ms(frame["open_time"]),
        times_ms(frame["fetched_at"]),
        ranks(frame["run_id"]),
    ]
    return np.lexsort(keys[::-1]), keys  # stable: rows of one answer stay in the order they came


def _starts(keys: list[_Numbers]) -> _Mask:
    """Which rows differ from the one before."""
    starts = np.ones(len(keys[0]), np.bool_)
    starts[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return starts


def _there_already(rows: _Rows) -> _Mask:
    """New rows that the old frame holds: of the same answer, with the same content."""
    size = np.bincount(rows.statement)
    added = np.bincount(rows.statement[rows.added], minlength=len(size))
    there = np.zeros(len(rows.position), np.bool_)
    suspects = np.flatnonzero(((added > 0) & (added < size))[rows.statement])
    if not len(suspects):
        return there
    content = pd.DataFrame(rows.values[suspects]).assign(
        statement=rows.statement[suspects],
        final=rows.final[suspects],
        received=rows.received[suspects],
    )
    every = [*content.columns, "added"]
    content["nth"] = (
        content.assign(added=rows.added[suspects]).groupby(every, dropna=False).cumcount()
    )
    there[suspects] = content.duplicated()  # old rows stand before new ones
    return there


def _repeats(rows: _Rows) -> _Mask:
    """Rows of statements that say what the candle's statement before says, row by row."""
    starts = np.flatnonzero(_starts([rows.statement]))
    sizes = np.diff(starts, append=len(rows.statement))
    which = np.repeat(np.arange(len(starts)), sizes)
    before = np.maximum(np.arange(len(which)) - sizes[which], 0)
    mine, theirs = rows.values, rows.values[before]
    alike = ((mine == theirs) | (np.isnan(mine) & np.isnan(theirs))).all(axis=1) & (
        rows.received == rows.received[before]
    )
    candle = rows.candle[starts]
    repeats = np.logical_and.reduceat(alike, starts)
    repeats[0] = False
    repeats[1:] &= (candle[1:] == candle[:-1]) & (sizes[1:] == sizes[:-1])
    return repeats[which]
