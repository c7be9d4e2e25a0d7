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

from crypto_pipeline.core.answers import as_received
from crypto_pipeline.core.candles import VALUES, as_candles
from crypto_pipeline.core.rules import (
    DUPLICATE,
    RULE_DEMANDS,
    RULES,
    columns_of,
    first_broken,
    times_ms,
)
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc


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
    candles = as_candles(observations.iloc[newest]).reset_index(drop=True)
    return Validation(candles, _rejected(observations, broken, duplicated))


def _resolve(
    observations: pd.DataFrame, kept: npt.NDArray[np.intp], day_start: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Positions of the newest answer's row of each candle in key order, and of duplicates."""
    if not len(kept):
        return kept, kept
    symbol = observations["symbol"].cat
    timeframe = observations["timeframe"].cat
    by_name = [np.argsort(np.argsort(list(names.categories))) for names in (symbol, timeframe)]
    series = by_name[0][symbol.codes.to_numpy()[kept]] * len(timeframe.categories)
    series += by_name[1][timeframe.codes.to_numpy()[kept]]
    candle = series * DAY_MS + (times_ms(observations["open_time"])[kept] - day_start)
    fetched = times_ms(observations["fetched_at"])[kept]
    run = observations["run_id"].cat.codes.to_numpy()[kept]

    order = np.lexsort((fetched, candle))  # stable: rows of one answer stay in the order they came
    candle, fetched, run = candle[order], fetched[order], run[order]
    again = np.zeros(len(order), np.bool_)
    again[1:] = (candle[1:] == candle[:-1]) & (fetched[1:] == fetched[:-1]) & (run[1:] == run[:-1])
    duplicated = kept[order[again]]
    candle, order = candle[~again], order[~again]
    last = np.ones(len(candle), np.bool_)
    last[:-1] = candle[1:] != candle[:-1]
    return kept[order[last]], np.sort(duplicated)


def _rejected(
    observations: pd.DataFrame, broken: npt.NDArray[np.int8], duplicated: npt.NDArray[np.intp]
) -> pd.DataFrame:
    rules = np.array([rule.name for rule in RULES] + [DUPLICATE], dtype=object)
    broken = broken.copy()
    broken[duplicated] = len(RULES)
    refused = np.flatnonzero(broken >= 0)
    rejected = observations.iloc[refused].reset_index(drop=True)
    names = rules[broken[refused]]
    return rejected.assign(
        rule=pd.Series(names, dtype="str"),
        message=pd.Series(
            [_message(row, rule) for row, rule in zip(rejected.itertuples(), names, strict=True)],
            dtype="str",
        ),
        received=pd.Series([_received(row) for row in rejected.itertuples()], dtype="str"),
    )


def _received(row: object) -> str:
    text = row.received  # type: ignore[attr-defined]
    if isinstance(text, str):
        return text
    time = int(row.open_time.timestamp() * 1_000)  # type: ignore[attr-defined]
    return as_received([time, *(getattr(row, name) for name in VALUES)])


def _message(row: object, rule: str) -> str:
    """What the rule demands and what came, in one line a person can act on."""
    opened = row.open_time  # type: ignore[attr-defined]
    seen = row.fetched_at.timestamp() * 1_000 + row.clock_offset_ms  # type: ignore[attr-defined]
    return (
        f"{RULE_DEMANDS[rule]}; came: {_received(row)}"
        f" (open_time {'none' if pd.isna(opened) else opened.isoformat()},"
        f" exchange clock {utc(int(seen)).isoformat()})"
    )[:1_000]
