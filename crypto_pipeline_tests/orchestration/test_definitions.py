"""The whole definition surface: a change to any name here is a change users notice."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import dagster as dg
import pytest

from crypto_pipeline.errors import ConfigError
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.settings import CONFIG, HOME, read_settings

PIPELINE = """
exchanges:
  binance: {symbols: ["BTC/USDT"], start: 2024-01-01}
  kraken: {symbols: ["BTC/USD"], start: 2024-02-01}
backfill: {partitions_per_run: 7}
"""


@pytest.fixture
def definitions(tmp_path: Path) -> dg.Definitions:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    return build_defs(
        settings=read_settings({CONFIG: str(tmp_path / "pipeline.yaml"), HOME: str(tmp_path)})
    )


def test_the_definition_surface(definitions: dg.Definitions) -> None:
    """Assets, their dependencies, checks, jobs, schedules and resources, by name."""
    graph = definitions.resolve_asset_graph()
    surface = {
        "assets": {
            key.to_user_string(): sorted(
                parent.to_user_string() for parent in graph.get(key).parent_keys
            )
            for key in graph.get_all_asset_keys()
        },
        "checks": sorted(
            (key.asset_key.to_user_string(), key.name, graph.get(key).blocking)
            for key in graph.asset_check_keys
        ),
        "jobs": sorted(
            job.name for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")
        ),
        "schedules": [
            (s.name, s.cron_schedule, s.default_status.value, s.execution_timezone)
            for s in definitions.schedules
        ],
        "sensors": [
            (s.name, s.minimum_interval_seconds, s.default_status.value)
            for s in definitions.sensors
        ],
        "resources": sorted(definitions.resources),
    }
    assert surface == {
        "assets": {
            "raw_ohlcv": [],
            "validated_ohlcv": ["raw_ohlcv"],
            "timescale_candles": ["validated_ohlcv"],
            "run_history": [],  # external: maintenance reports to it, nobody materializes it
        },
        "checks": [
            ("raw_ohlcv", "every_request_answered", False),
            ("raw_ohlcv", "ohlcv_constraints", False),
            ("timescale_candles", "completeness", False),
            ("timescale_candles", "seconds_behind_now", False),
            ("timescale_candles", "stored_equals_validated", False),
            ("validated_ohlcv", "candle_schema", True),
        ],
        "jobs": ["maintenance", "ohlcv_job"],
        "schedules": [
            ("realtime_ohlcv", "* * * * *", "RUNNING", "UTC"),
            ("maintenance_hourly", "23 * * * *", "RUNNING", "UTC"),
        ],
        "sensors": [("heal_ohlcv", 30, "RUNNING")],
        "resources": [
            "ccxt",
            "clock",
            "database",
            "io_manager",
            "lake",
            "ledger",
            "onward",
            "timescale",
            "validated_lake",
        ],
    }


def test_partitions_are_exchange_by_utc_day_from_the_first_start_to_today(
    definitions: dg.Definitions,
) -> None:
    """Keys read 2024-01-02|binance, today's is there, and range runs are as long as configured."""
    from datetime import UTC, datetime

    today = datetime.now(UTC).date()
    for key in ("raw_ohlcv", "validated_ohlcv", "timescale_candles"):
        node = definitions.resolve_asset_graph().get(dg.AssetKey(key))
        keys = node.partitions_def.get_partition_keys()
        assert keys[0] == "2024-01-01|binance"
        assert f"{today}|kraken" in keys
        assert len(keys) == 2 * ((today - date(2024, 1, 1)).days + 1)
        assert node.backfill_policy.max_partitions_per_run == 7


def test_definitions_do_not_load_with_a_wrong_file_and_say_why(tmp_path: Path) -> None:
    """A misconfigured pipeline must not start and then do something else than was meant."""
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE.replace("binance:", "binanse:"))
    with pytest.raises(
        ConfigError, match=r"pipeline\.yaml: exchanges\.binanse: .*Did you mean binance"
    ):
        build_defs(settings=read_settings({CONFIG: str(path), HOME: str(tmp_path)}))


def test_definitions_load_without_any_database(definitions: dg.Definitions) -> None:
    """Resources hold addresses, not connections: validating code needs no server."""
    dg.Definitions.validate_loadable(definitions)
