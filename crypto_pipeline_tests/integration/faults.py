"""What must hold whatever happened: nothing half-written is visible, and all heals by itself."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pandas as pd

from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawZone, ValidatedZone
from crypto_pipeline.orchestration.resources import LakeResource
from crypto_pipeline_tests.pipelines import CANDLE, Pipeline

KEY = CANDLE[:4]


def nothing_half_is_visible(pipeline: Pipeline) -> None:
    """Each file is whole, each row is the exchange's, and what the ledger calls complete is."""
    lake = LakeResource(pipeline.settings.lake)
    zones: list[RawZone | ValidatedZone] = [lake.raw(), lake.validated()]
    for zone, name in zip(zones, ("raw", "validated"), strict=True):
        for exchange, day in _files(pipeline, name):
            zone.read(exchange, day)
    stored = pipeline.candles()
    for exchange in stored["exchange"].unique():
        ours = stored[stored["exchange"] == exchange].reset_index(drop=True)
        truth = pipeline.truth(
            exchange, int(ours["open_time"].min()), int(ours["open_time"].max()) + MINUTE_MS
        )
        found = ours[KEY].merge(truth, on=KEY, how="left")
        pd.testing.assert_frame_equal(found, ours)
    for exchange, day in pipeline.rows(
        "SELECT exchange, partition_date FROM candle_partitions WHERE complete"
    ):
        if day_start_ms(day) + DAY_MS > pipeline.now:
            continue  # today's: what is due of it changes by the minute
        _equal(pipeline, exchange, day_start_ms(day), day_start_ms(day) + DAY_MS)


def healed(pipeline: Pipeline, exchange: str, first: date, last: date) -> None:
    """The days are stored as they truly were, complete and explained, and no litter is left."""
    start, end = day_start_ms(first), day_start_ms(last) + DAY_MS
    _equal(pipeline, exchange, start, min(end, pipeline.now // MINUTE_MS * MINUTE_MS))
    nothing_half_is_visible(pipeline)
    for day in pd.date_range(first, last):
        _lake_holds_what_is_stored(pipeline, exchange, day.date())
    assert pipeline.rows("SELECT * FROM candle_gaps WHERE next_retry IS NOT NULL") == []
    assert pipeline.rows("SELECT partition_date FROM candle_partitions WHERE NOT complete") == []
    assert unfinished(pipeline) == []


def age(pipeline: Pipeline) -> None:
    """Let what was left lie for a minute: what is a moment old may be somebody's."""
    for path in unfinished(pipeline):
        time = path.stat().st_mtime - 60
        os.utime(path, (time, time))


def unfinished(pipeline: Pipeline) -> list[Path]:
    """Files of writes that did not come to their end."""
    return list(Path(pipeline.settings.lake).rglob(".*.tmp"))


def _lake_holds_what_is_stored(pipeline: Pipeline, exchange: str, day: date) -> None:
    """Both zones: a row that only the table has is one the archive lost."""
    lake = LakeResource(pipeline.settings.lake)
    validated = lake.validated().read(exchange, day)
    assert validated is not None
    stored = pipeline.candles()
    of_day = stored["open_time"] // DAY_MS * DAY_MS == day_start_ms(day)
    stored = stored[(stored["exchange"] == exchange) & of_day]
    for rows in (validated[validated["final"]], lake.raw().read(exchange, day).observations):
        held = set(zip(rows["symbol"].astype(str), times_ms(rows["open_time"]), strict=True))
        assert set(zip(stored["symbol"], stored["open_time"], strict=True)) <= held


def _files(pipeline: Pipeline, zone: str) -> list[tuple[str, date]]:
    found = []
    for path in Path(pipeline.settings.lake, zone).glob("exchange=*/date=*/candles.parquet"):
        exchange, day = (part.split("=")[1] for part in path.parts[-3:-1])
        assert LakeStorage(pipeline.settings.lake).read(
            str(path.relative_to(pipeline.settings.lake))
        )
        found.append((exchange, date.fromisoformat(day)))
    return found


def _equal(pipeline: Pipeline, exchange: str, start: int, end: int) -> None:
    stored = pipeline.candles()
    stored = stored[
        (stored["exchange"] == exchange)
        & (stored["open_time"] >= start)
        & (stored["open_time"] < end)
    ].reset_index(drop=True)
    pd.testing.assert_frame_equal(stored, pipeline.truth(exchange, start, end))
