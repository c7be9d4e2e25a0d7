"""Jobs: what the schedule and `crypto-pipeline backfill` run."""

from __future__ import annotations

from typing import Final

import dagster as dg

from crypto_pipeline.orchestration.workers import run_executor

OHLCV_JOB: Final = "ohlcv_job"


def build_ohlcv_job() -> object:
    """All assets and checks of a partition or a range, in one process: one a step costs seconds."""
    return dg.define_asset_job(
        OHLCV_JOB,
        selection=dg.AssetSelection.all(),
        executor_def=run_executor,
        description="Ask for what a partition lacks, validate, store.",
    )
