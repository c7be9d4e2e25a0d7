"""What orchestration/history.py leans on in Dagster's storage. A failure here: upstream changed.

Look at each table that is new or differs before the pin is moved: does it grow with every run, and
does something in it hold the state of a partition?
"""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.runs.schema import RunStorageSqlMetadata, RunTagsTable
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

from crypto_pipeline.orchestration import history

#: Every table of the storage, and why maintenance cleans it or leaves it alone.
TABLES = {
    "event_logs": "with its run",
    "asset_event_tags": "with its event",
    "asset_check_executions": "with its run",
    "runs": "by age",
    "run_tags": "cascades from its run",
    "bulk_actions": "by age, without runs",
    "backfill_tags": "with its backfill",
    "job_ticks": "purged by Dagster: retention in dagster.yaml",
    # One row an asset, schedule, sensor, daemon, pool, version of the code or migration:
    "asset_keys": "bounded",
    "jobs": "bounded",
    "instigators": "bounded",
    "daemon_heartbeats": "bounded",
    "kvs": "bounded",
    "snapshots": "bounded",
    "instance_info": "bounded",
    "secondary_indexes": "bounded",
    "concurrency_limits": "bounded",
    # Of steps under way in pools; freed when their run ends, and this project has no pools:
    "concurrency_slots": "freed",
    "pending_steps": "freed",
    # Of features this project does not use:
    "dynamic_partitions": "unused",
    "asset_daemon_asset_evaluations": "unused",
}


def test_these_are_all_tables_of_the_storage() -> None:
    """A new one may grow with every run."""
    known = (SqlEventLogStorageMetadata, RunStorageSqlMetadata, ScheduleStorageSqlMetadata)
    assert {name for metadata in known for name in metadata.tables} == set(TABLES)
    cleaned = {name for name, why in TABLES.items() if why not in {"bounded", "freed", "unused"}}
    assert {table.name for table in history.GROWING} == cleaned


def test_the_columns_maintenance_goes_by() -> None:
    """Names and what refers to a run or an event; a further reference needs a look."""
    columns = {table.name: {column.name for column in table.columns} for table in history.GROWING}
    assert columns["event_logs"] == {
        "id", "run_id", "event", "dagster_event_type", "timestamp", "step_key", "asset_key",
        "partition",
    }  # fmt: skip
    assert columns["asset_event_tags"] >= {"id", "event_id"}
    assert columns["asset_check_executions"] == {
        "id", "asset_key", "check_name", "partition", "run_id", "execution_status",
        "evaluation_event", "evaluation_event_timestamp", "evaluation_event_storage_id",
        "materialization_event_storage_id", "create_timestamp",
    }  # fmt: skip
    assert columns["runs"] >= {"run_id", "status", "end_time", "update_timestamp", "backfill_id"}
    assert columns["bulk_actions"] >= {"key", "status", "timestamp"}
    assert columns["backfill_tags"] >= {"backfill_id"}
    (reference,) = RunTagsTable.c.run_id.foreign_keys
    assert reference.ondelete == "CASCADE"


def test_the_words_for_what_has_ended() -> None:
    """A run or backfill in another status is never touched."""
    assert {status.value for status in FINISHED_STATUSES} == set(history._ENDED)
    terminal = {status.value for status in BULK_ACTION_TERMINAL_STATUSES}
    assert terminal == set(history._BACKFILL_ENDED)
    assert AssetCheckExecutionRecordStatus.PLANNED.value == "PLANNED"
    for kind in (*history._STATES, history._PLANNED):
        assert dg.DagsterEventType(kind).value == kind


def test_delete_run_leaves_check_results(tmp_path: Path) -> None:
    """Why maintenance does not just call it. If this fails, Dagster has learned it."""

    @dg.asset(check_specs=[dg.AssetCheckSpec("kept", asset="raw")])
    def raw() -> dg.MaterializeResult:
        return dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])

    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        result = dg.materialize(
            [raw],
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        instance.delete_run(result.run_id)
        key = dg.AssetCheckKey(dg.AssetKey("raw"), "kept")
        (info,) = instance.event_log_storage.get_asset_check_partition_info([key])
        assert info.latest_planned_run_id == result.run_id
