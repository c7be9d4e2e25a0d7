"""Whether a partition is complete: what is due, what is there, and why the rest is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

import numpy as np
import pandas as pd

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.gaps import Gap, PartitionState
from crypto_pipeline.core.intervals import Interval, Intervals
from crypto_pipeline.core.judging import runs
from crypto_pipeline.core.ledger import PartitionFacts, partition_gaps
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, timeframe_ms


def completeness(
    config: ExchangeConfig,
    day: date,
    *,
    coverage: Coverage,
    stored: Mapping[Series, Intervals],
    now: int,
    max_lag_seconds: int,
) -> tuple[list[Gap], PartitionState]:
    """The gaps of a partition, and its sums.

    Args:
        config: the exchange's.
        day: the partition's UTC day.
        coverage: what was asked for it.
        stored: its candles, by series, as intervals they fill; see :func:`filled`.
        now: our clock, ms.
        max_lag_seconds: how long after its close a candle of today is due.
    """
    start = max(day_start_ms(day), day_start_ms(config.start))
    return partition_gaps(
        PartitionFacts(
            bounds=Interval(start, max(start, day_start_ms(day) + DAY_MS)),
            series=config.series,
            coverage=coverage,
            stored=stored,
            habits=config.exchange_habits,
            now=now,
            due_before=now - max_lag_seconds * 1_000,
        )
    )


def filled(
    candles: pd.DataFrame | None, series: Sequence[Series] | None = None
) -> dict[Series, Intervals]:
    """The final candles of a validated frame, by series, as intervals they fill.

    ``series``: those wanted; by default all. A series that is no longer configured stays in the
    archive and in the table.
    """
    if candles is None or not candles["final"].any():  # as in a day's first minute
        return {}
    final = candles["final"].to_numpy()
    symbols, timeframes = candles["symbol"].cat, candles["timeframe"].cat
    of_series = (symbols.codes.to_numpy().astype(np.int64) * len(timeframes.categories))[final]
    of_series += timeframes.codes.to_numpy()[final]
    times = times_ms(candles["open_time"])[final]
    order = np.argsort(of_series, kind="stable")  # in key order already where a lake wrote them
    of_series, times = of_series[order], times[order]
    borders = np.flatnonzero(np.diff(of_series, prepend=-1))
    found = {}
    for start, stop in zip(borders, [*borders[1:], len(times)], strict=True):
        symbol, timeframe = divmod(int(of_series[start]), len(timeframes.categories))
        one = Series(str(symbols.categories[symbol]), str(timeframes.categories[timeframe]))
        if series is None or one in series:
            found[one] = runs(times[start:stop], timeframe_ms(one.timeframe))
    return found
