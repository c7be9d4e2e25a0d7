"""All definitions, built fresh from settings and a pipeline file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from crypto_pipeline.exchanges.catalogue import check_exchanges
from crypto_pipeline.orchestration.ahead import DoneAhead
from crypto_pipeline.orchestration.assets import build_assets
from crypto_pipeline.orchestration.checks import build_checks
from crypto_pipeline.orchestration.healing import build_sensor
from crypto_pipeline.orchestration.io_managers import (
    NoIOManager,
    TimescaleIOManager,
    ValidatedLakeIOManager,
)
from crypto_pipeline.orchestration.jobs import build_ohlcv_job
from crypto_pipeline.orchestration.ledger import LedgerResource
from crypto_pipeline.orchestration.maintenance import (
    RUN_HISTORY,
    build_maintenance_job,
    build_maintenance_schedule,
)
from crypto_pipeline.orchestration.onward import OnwardResource
from crypto_pipeline.orchestration.partitions import candle_partitions
from crypto_pipeline.orchestration.resources import (
    CcxtResource,
    ClockResource,
    DatabaseResource,
    LakeResource,
)
from crypto_pipeline.orchestration.schedules import build_schedule
from crypto_pipeline.orchestration.verdicts_raw import RawJudge
from crypto_pipeline.orchestration.verdicts_stored import StoredJudge
from crypto_pipeline.orchestration.workers import run_executor
from crypto_pipeline.settings import Settings, read_settings


def build_defs(
    *,
    settings: Settings | None = None,
    resource_overrides: Mapping[str, Any] | None = None,
    loggers: Mapping[str, dg.LoggerDefinition] | None = None,
) -> dg.Definitions:
    """A fresh ``Definitions``.

    Args:
        settings: where the pipeline file, the lake and the database are; by default the
            environment says.
        resource_overrides: resources to use instead of the ones made here, by key.
        loggers: further loggers runs can choose.

    Raises:
        ConfigError: the pipeline file is wrong.
    """
    settings = settings or read_settings()
    loaded = settings.load_config()
    config = loaded.pipeline
    check_exchanges(loaded)
    lake = LakeResource(settings.lake)
    database = DatabaseResource(settings.require_database_url)
    resources = {
        "ccxt": CcxtResource(config, settings.require_database_url, loaded.secrets),
        "lake": lake,
        "database": database,
        "clock": ClockResource(),
        "io_manager": NoIOManager(),
        **(resource_overrides or {}),
    }
    done = DoneAhead()
    resources.setdefault("validated_lake", ValidatedLakeIOManager(resources["lake"], done))
    resources.setdefault(
        "ledger",
        LedgerResource(config, resources["lake"], resources["database"], resources["clock"]),
    )
    resources.setdefault(
        "timescale", TimescaleIOManager(resources["database"], resources["ledger"], done)
    )
    resources.setdefault(
        "onward",
        OnwardResource(
            resources["lake"],
            resources["database"],
            resources["validated_lake"],
            resources["timescale"],
            done,
            RawJudge(config, resources["clock"]),
            StoredJudge(config, resources["ledger"], resources["clock"]),
        ),
    )
    with warnings.catch_warnings():
        # Each is pinned in test_upstream_pins.py, which fails when Dagster changes it.
        for beta in (
            "Parameter `backfill_policy`",
            "Specifying a partitions_def on an AssetCheckSpec",
        ):
            warnings.filterwarnings("ignore", message=beta)
        partitions = candle_partitions(config)
        job = build_ohlcv_job()
        maintenance = build_maintenance_job(config)
        return dg.Definitions(
            assets=[*build_assets(config, partitions), RUN_HISTORY],
            asset_checks=build_checks(config, partitions),
            jobs=[job, maintenance],  # type: ignore[list-item]
            schedules=[build_schedule(config, job), build_maintenance_schedule(maintenance)],
            sensors=[build_sensor(config, partitions, job)],
            resources=resources,
            loggers=loggers,
            executor=run_executor,
        )
