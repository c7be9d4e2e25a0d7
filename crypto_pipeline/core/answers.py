"""From the rows of answers to observations, in bulk and without losing what a row said.

ccxt converts a page candle by candle and turns what it cannot read into ``None``; here pages are
converted column by column (:mod:`.rows`), so that validation can refuse a row by name and show it as
received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, empty_observations
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rows import NO_TIME, Layout, RowColumns, row_columns
from crypto_pipeline.core.timeframes import timeframe_ms


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an exchange answered to one window of one series.

    Attributes:
        window: what was asked for.
        rows: the rows of the answer, as received, in ``layout``; none once they are ``columns``.
        fetched_at: our clock when the answer was asked for, ms: it can be as old as that.
        clock_offset_ms: the exchange's clock minus ours.
    """

    symbol: str
    timeframe: str
    window: Interval
    rows: Sequence[object]
    layout: Layout
    fetched_at: int
    clock_offset_ms: int
    source: str = "ohlcv"
    columns: RowColumns | None = None

    @property
    def size(self) -> int:
        """How many rows it has."""
        return len(self.rows if self.columns is None else self.columns[0])

    def read(self) -> Answer:
        """The same, its rows read as numbers, which take less memory while they wait."""
        if self.columns is not None:
            return self
        return replace(self, rows=(), columns=row_columns(self.rows, self.layout))

    @property
    def exchange_now(self) -> int:
        """The exchange's clock when it answered, ms, at the earliest."""
        return self.fetched_at + self.clock_offset_ms


def settled_before(exchange_now: int, *, timeframe: str, settle_ms: int) -> int:
    """Candles that open before this instant are final: closed for ``settle_ms`` by that clock."""
    length = timeframe_ms(timeframe)
    return (exchange_now - settle_ms) // length * length


def observations_of(answer: Answer, *, run_id: str, settle_ms: int) -> pd.DataFrame:
    """The answer's rows as observations, in the order they came.

    A candle is final when it has been closed for ``settle_ms`` by the exchange's clock, or when a
    later candle stands in the same answer (a row in the future or off the grid proves nothing).
    """
    return observations_of_all([answer], run_id=run_id, settle_ms=settle_ms)


def observations_of_all(answers: Sequence[Answer], *, run_id: str, settle_ms: int) -> pd.DataFrame:
    """The rows of several answers, one after the other; see :func:`observations_of`.

    A frame is built once for all of them: building one costs more than reading a page's numbers.
    """
    if not answers:
        return empty_observations()
    parsed = [answer.columns or row_columns(answer.rows, answer.layout) for answer in answers]
    sizes = [answer.size for answer in answers]

    def each(values: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array(values, np.int64), sizes)

    def names(values: Sequence[str]) -> pd.Categorical:
        codes, categories = pd.factorize(np.array(values, dtype=object))
        return pd.Categorical.from_codes(np.repeat(codes, sizes), pd.Index(categories, dtype="str"))

    finals = [
        _final(open_time, answer, settle_ms=settle_ms)
        for answer, (open_time, _, _) in zip(answers, parsed, strict=True)
    ]
    columns = {
        "symbol": names([answer.symbol for answer in answers]),
        "timeframe": names([answer.timeframe for answer in answers]),
        "open_time": _utc_times(np.concatenate([open_time for open_time, _, _ in parsed])),
        **{
            name: np.concatenate([values[index] for _, values, _ in parsed])
            for index, name in enumerate(VALUES)
        },
        "final": np.concatenate(finals),
        "fetched_at": _utc_times(each([answer.fetched_at for answer in answers])),
        "run_id": names([run_id] * len(answers)),
        "source": names([answer.source for answer in answers]),
        "clock_offset_ms": each([answer.clock_offset_ms for answer in answers]),
        "received": _received_texts([texts for _, _, texts in parsed], sizes),
    }
    return pd.DataFrame({name: columns[name] for name in OBSERVATION_DTYPES})


def final_before(answer: Answer, open_time: npt.NDArray[np.int64], *, settle_ms: int) -> int:
    """Candles of this answer that open before this instant are final.

    Args:
        answer: the answer.
        open_time: of its rows, ms.
        settle_ms: how long after its close a candle may still change.
    """
    before = settled_before(answer.exchange_now, timeframe=answer.timeframe, settle_ms=settle_ms)
    on_grid = open_time % timeframe_ms(answer.timeframe) == 0
    started = open_time[on_grid & (open_time <= answer.exchange_now)]
    return max(before, int(started.max())) if len(started) else before


def _final(
    open_time: npt.NDArray[np.int64], answer: Answer, *, settle_ms: int
) -> npt.NDArray[np.bool_]:
    before = final_before(answer, open_time, settle_ms=settle_ms)
    return (open_time < before) & (open_time != NO_TIME)


def _utc_times(times: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(times.view("datetime64[ms]")).tz_localize("UTC")


def _received_texts(pages: Sequence[list[str | None] | None], sizes: Sequence[int]) -> Any:
    if not any(pages):
        return pd.array(pa.nulls(sum(sizes), pa.large_string()), dtype="str")
    texts = (page or [None] * size for page, size in zip(pages, sizes, strict=True))
    return pd.array(list(chain.from_iterable(texts)), dtype="str")
