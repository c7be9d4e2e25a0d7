"""From the observations of one partition to its candles: what conforms, and what is refused.

A pure function of the raw zone: validating the same observations again, today or in a year, gives
the same candles and the same rejections.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pandas as pd

from crypto_pipeline.core.candles import VALUES, as_candles, ranks
from crypto_pipeline.core.rows import as_received
from crypto_pipeline.core.rules import (
    DUPLICATE,
    NO_TIME,
    RULE_DEMANDS,
    RULES,
    columns_of,
    first_broken,
    times_ms,
)
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms


@dataclass(frozen=True)
class Validation:
    """The verdict on one partition's observations.

    Attributes:
        candles: the newest conforming observation of each candle, in primary-key order.
        rejected: the observations that broke a rule, with ``rule``, ``message`` and ``received``
            filled for every row.
    """

    candles: pd.DataFrame
    rejected: pd.DataFrame

    @property
    def counts(self) -> dict[str, int]:
        """Rejected observations by rule; rules nobody broke are absent."""
        return {str(rule): int(n) for rule, n in self.rejected["rule"].value_counts().items()}


def validate(observations: pd.DataFrame, *, day: date) -> Validation:
    """Split observations (columns of ``OBSERVATION_DTYPES``, oldest first) into kept and refused.

    Among conforming rows of one answer the first row of a candle stands and the others are
    duplicates; among answers the newest conforming one stands, so that a late correction replaces a
    candle and a later bad reading does not.
    """
    day_start = day_start_ms(day)
    broken = first_broken(columns_of(observations, partition_start=day_start))
    kept = np.flatnonzero(broken < 0)
    newest, duplicated = _resolve(observations, kept, day_start)
    every = np.array_equal(newest, np.arange(len(observations)))
    candles = as_candles(observations if every else observations.iloc[newest])
    candles = candles.reset_index(drop=True)
    return Validation(candles, _rejected(observations, broken, duplicated))


def _resolve(
    observations: pd.DataFrame, kept: npt.NDArray[np.intp], day_start: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Positions of the newest answer's row of each candle in key order, and of duplicates."""
    symbol, timeframe = ranks(observations["symbol"]), ranks(observations["timeframe"])
    series = symbol * len(observations["timeframe"].cat.categories) + timeframe
    candle = (series * DAY_MS + times_ms(observations["open_time"]) - day_start)[kept]
    if (candle[1:] > candle[:-1]).all():
        return kept, kept[:0]  # in order, and each once: nothing to choose between
    fetched = times_ms(observations["fetched_at"])[kept]
    run = ranks(observations["run_id"])[kept]

    # Stable: rows of one answer stay in the order they came.
    order = np.lexsort((run, fetched, candle))
    candle, fetched, run = candle[order], fetched[order], run[order]
    same = candle[1:] == candle[:-1]
    again = np.zeros(len(order), np.bool_)
    again[1:] = same & (fetched[1:] == fetched[:-1]) & (run[1:] == run[:-1])
    duplicated = kept[order[again]]
    candle, order = candle[~again], order[~again]
    last = np.ones(len(candle), np.bool_)
    last[:-1] = candle[1:] != candle[:-1]
    return kept[order[last]], duplicated


def _rejected(
    observations: pd.DataFrame, broken: npt.NDArray[np.int8], duplicated: npt.NDArray[np.intp]
) -> pd.DataFrame:
    rules = np.array([*(rule.name for rule in RULES), DUPLICATE], dtype=object)
    broken = broken.copy()
    broken[duplicated] = len(RULES)
    refused = np.flatnonzero(broken >= 0)
    rejected = observations.iloc[refused].reset_index(drop=True)
    names = rules[broken[refused]]
    received = _received(rejected)
    now = times_ms(rejected["fetched_at"]) + rejected["clock_offset_ms"].to_numpy(np.int64)
    messages = [
        f"{RULE_DEMANDS[rule]}; came: {text[:800]} (open_time {opened}, exchange clock {seen})"
        for rule, text, opened, seen in zip(
            names, received, _iso(times_ms(rejected["open_time"])), _iso(now), strict=True
        )
    ]
    return rejected.assign(
        rule=pd.Series(names, dtype="str"),
        message=pd.Series(messages, dtype="str"),
        received=pd.Series(received, dtype="str"),
    )


def _received(rows: pd.DataFrame) -> list[str]:
    """The rows as they came; those that are just their six numbers say no more than those."""
    opened = [None if time == NO_TIME else time for time in times_ms(rows["open_time"]).tolist()]
    numbers = zip(opened, *(rows[name].tolist() for name in VALUES), strict=True)
    return [
        text if isinstance(text, str) else as_received(six)
        for text, six in zip(rows["received"].tolist(), numbers, strict=True)
    ]


def _iso(times: npt.NDArray[np.int64]) -> list[str]:
    texts = np.datetime_as_string(times.view("datetime64[ms]"), timezone="UTC")
    return ["none" if text == "NaT" else str(text) for text in texts]
