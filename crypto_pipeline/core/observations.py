"""Merging a new answer into what the raw zone already holds of a partition.

The raw zone is a log: an observation that says something new about a candle is added, one that
repeats the newest answer is not, and only a forming candle is replaced. Nothing else ever leaves.
"""

from __future__ import annotations

import pandas as pd

from crypto_pipeline.core.candles import KEY, OBSERVATION_DTYPES, VALUES, as_observations, concat

_ANSWER = [*KEY, "fetched_at", "run_id"]


def merge(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The observations of a partition after one more answer (or several).

    Args:
        old: what the partition holds.
        new: observations of answers given since, in the order they came.

    Returns:
        Both, in key order and within a candle oldest first, without

        - new rows that repeat what the newest old answer said of that candle,
        - new forming rows of a candle that is already final,
        - old forming rows of a candle about which something new was said.
    """
    if new.empty:
        return old
    touched = old["open_time"].isna() | old["open_time"].between(
        new["open_time"].min(), new["open_time"].max()
    )
    before = _keyed(old[touched])
    fresh = _keyed(new)
    newest = before.drop_duplicates([*KEY, "nth"], keep="last")
    same = fresh.merge(newest, on=[*KEY, "nth"], how="left", suffixes=("", "_old"), indicator=True)
    repeated = same["_merge"].eq("both")
    for name in (*VALUES, "received"):
        mine, theirs = same[name], same[f"{name}_old"]
        repeated &= mine.eq(theirs).fillna(value=False) | (mine.isna() & theirs.isna())
    was_final = same["final_old"].eq(other=True)
    repeated &= was_final | ~same["final"]
    said = new[~(repeated | (was_final & ~same["final"])).to_numpy(bool)]

    spoken_of = pd.MultiIndex.from_frame(_names(said))
    forming = old.loc[touched & ~old["final"]]
    replaced = forming.index[pd.MultiIndex.from_frame(_names(forming)).isin(spoken_of)]
    merged = concat([old.drop(index=replaced), said], OBSERVATION_DTYPES)
    return in_order(merged)


def in_order(observations: pd.DataFrame) -> pd.DataFrame:
    """Key order, and within a candle the order in which the answers came."""
    by_name = observations.assign(
        symbol=observations["symbol"].astype("str"),
        timeframe=observations["timeframe"].astype("str"),
    )
    order = by_name.sort_values([*KEY, "fetched_at"], kind="stable").index
    return as_observations(observations.loc[order].reset_index(drop=True))


def _names(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[list(KEY)].astype({"symbol": "str", "timeframe": "str"})


def _keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with plain names and ``nth``: which row of its answer about its candle it is."""
    frame = frame.astype({"symbol": "str", "timeframe": "str", "run_id": "str", "source": "str"})
    return frame.assign(nth=frame.groupby(_ANSWER, dropna=False, sort=False).cumcount())
