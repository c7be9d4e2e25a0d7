"""From the rows of a page of trades to columns; a row that is not a trade spoils the page by name.

It is not left out and not put off for validation, as a candle would be: a candle built without one
of its trades looks right and is wrong for good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from crypto_pipeline.core.rows import as_received
from crypto_pipeline.errors import BadAnswer

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Id = int | str

_LAST_TIME_S: Final = 253_402_300_800  # year 9999


class TradeColumns(NamedTuple):
    """Trades, one array a column; times in microseconds UTC."""

    times_us: Ints
    prices: Floats
    amounts: Floats
    ids: list[Id]

    def at(self, where: npt.NDArray[np.int64]) -> TradeColumns:
        """The trades at some positions, in that order."""
        ids = [self.ids[position] for position in where]
        return TradeColumns(self.times_us[where], self.prices[where], self.amounts[where], ids)


def read_rows(
    rows: Sequence[Any], columns_of: Callable[[Sequence[Any]], TradeColumns]
) -> TradeColumns:
    """The rows as columns.

    Raises:
        BadAnswer: a row is not a trade. It is not left out: its candle would be wrong for good.
    """
    if not rows:
        return TradeColumns(np.empty(0, np.int64), np.empty(0), np.empty(0), [])
    try:
        return columns_of(rows)
    except Exception as error:  # noqa: BLE001 - ccxt's parse_trade raises anything
        reason = error
    for index, row in enumerate(rows):
        try:
            columns_of([row])
        except Exception:  # noqa: BLE001 - see above
            raise BadAnswer(
                f"row {index} of {len(rows)} is not a trade with a price, an amount, a time and an"
                f" id: {as_received(row)}"
            ) from None
    raise BadAnswer(f"the rows of the answer do not go together: {reason}")


def kraken_columns(rows: Sequence[Any]) -> TradeColumns:
    """``[price, amount, seconds, side, type, misc, id]``; ccxt appends the cursor to the last."""
    ids = [row[6] for row in rows]
    if not {int}.issuperset(map(type, ids)):
        raise ValueError("not a column of ids")
    seconds = _numbers([row[2] for row in rows])
    if not ((seconds >= 0) & (seconds < _LAST_TIME_S)).all():
        raise ValueError("not times")
    whole = np.floor(seconds)
    # Rounded within its second: no trade is moved over the border of a candle
    micro = np.minimum(np.rint((seconds - whole) * 1e6), 999_999)
    times_us = whole.astype(np.int64) * 1_000_000 + micro.astype(np.int64)
    return TradeColumns(
        times_us, _positive([row[0] for row in rows]), _positive([row[1] for row in rows]), ids
    )


def parsed_columns(trades: Sequence[dict[str, Any]]) -> TradeColumns:
    """Trades as ccxt's ``parse_trade`` gives them."""
    ids = [trade["id"] for trade in trades]
    times = [trade["timestamp"] for trade in trades]
    if not {str}.issuperset(map(type, ids)) or not {int}.issuperset(map(type, times)):
        raise ValueError("not columns of ids and times")
    times_us = np.array(times, np.int64) * 1_000
    if not ((times_us >= 0) & (times_us < _LAST_TIME_S * 1_000_000)).all():
        raise ValueError("not times")
    prices, amounts = (
        _positive([float(trade[name]) for trade in trades]) for name in ("price", "amount")
    )
    return TradeColumns(times_us, prices, amounts, list(ids))


def chronological(columns: TradeColumns) -> TradeColumns:
    """Oldest first, in whichever order they came; ids decide where they are numbers."""
    times = columns.times_us
    if not len(times):
        return columns
    rank: Sequence[int] = range(len(times))
    if all(str(one).isdecimal() for one in columns.ids):
        rank = [int(one) for one in columns.ids]
    elif times[0] > times[-1]:
        rank = range(len(times), 0, -1)
    order = sorted(range(len(times)), key=lambda at: (times[at], rank[at]))
    return columns.at(np.array(order))


def _positive(cells: list[Any]) -> Floats:
    """A column of numbers above zero; ValueError if any is not."""
    numbers = _numbers(cells)
    if not ((numbers > 0) & (numbers < math.inf)).all():
        raise ValueError("not numbers above zero")
    return numbers


def _numbers(cells: list[Any]) -> Floats:
    """A column of JSON numbers, or of texts of numbers; ValueError if any is something else."""
    kinds = set(map(type, cells))
    if kinds == {str}:
        return np.asarray(pc.cast(pa.array(cells), pa.float64()))
    if not kinds <= {int, float}:
        raise ValueError("not a column of numbers")
    return np.array(cells, np.float64)
