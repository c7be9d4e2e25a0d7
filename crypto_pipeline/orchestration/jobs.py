"""Jobs: what the schedule runs."""

from __future__ import annotations

from typing import Final

import dagster as dg

REALTIME: Final = "realtime_ohlcv_job"


def build_realtime_job(partitions: dg.MultiPartitionsDefinition) -> object:
    """All assets and checks of one partition, in one process: a process a step would cost seconds."""
    return dg.define_asset_job(
        REALTIME,
        selection=dg.AssetSelection.all(),
        partitions_def=partitions,
        executor_def=dg.in_process_executor,
        description="One exchange's day: ask for what is new, validate, store.",
        tags={"dagster/priority": "10"},
    )
