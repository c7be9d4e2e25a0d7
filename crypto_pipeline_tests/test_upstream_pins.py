"""What we lean on in other people's code without their promise. A failure here: upstream changed.

Not tests of ours: each says what our code does because of it, and so what to look at when a version
moves. Those of ccxt are in test_upstream_pins_ccxt.py.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import math
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from sqlalchemy import make_url

PARTITIONS = dg.MultiPartitionsDefinition(
    {
        "date": dg.DailyPartitionsDefinition("2024-01-01", end_offset=1),
        "exchange": dg.StaticPartitionsDefinition(["b", "a"]),
    }
)
RANGE = {
    "dagster/asset_partition_range_start": "2024-01-02|b",
    "dagster/asset_partition_range_end": "2024-01-04|b",
}


def preview_specs(*, blocking: bool = False) -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Specifying a partitions_def on an AssetCheckSpec"
        )
        return [
            dg.AssetCheckSpec("kept", asset="raw", partitions_def=PARTITIONS, blocking=blocking)
        ]


def _run(check: Any, tmp_path: Path) -> tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]:
    """An asset and a check of it over a range of three partitions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Parameter `backfill_policy`")

        @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.multi_run(30))
        def raw(context: dg.AssetExecutionContext) -> None:
            for key in context.partition_keys:
                context.add_asset_metadata({"key": str(key)}, partition_key=key)

    instance = dg.DagsterInstance.ephemeral(tempdir=str(tmp_path))
    definitions = dg.Definitions(
        assets=[raw], asset_checks=[check], jobs=[dg.define_asset_job("job", selection="*")]
    )
    result = definitions.resolve_job_def("job").execute_in_process(
        instance=instance,
        tags=RANGE,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    return instance, result


def _recorded(instance: dg.DagsterInstance) -> dict[str | None, str]:
    """What the UI reads: per partition the newest state of the check."""
    key = dg.AssetCheckKey(dg.AssetKey("raw"), "kept")
    infos = instance.event_log_storage.get_asset_check_partition_info([key])
    return {info.partition_key: info.latest_execution_status.value for info in infos}


def test_a_returned_check_result_leaves_the_partitions_of_a_range_planned(tmp_path: Path) -> None:
    """Why check_results.py exists. If this fails, Dagster has learned it: use AssetCheckResult."""

    @dg.multi_asset_check(specs=preview_specs())
    def check() -> Iterator[dg.AssetCheckResult]:
        yield dg.AssetCheckResult(passed=True, asset_key="raw", check_name="kept")

    instance, result = _run(check, tmp_path)
    assert result.success
    recorded = _recorded(instance)
    assert recorded.pop(None) == "SUCCEEDED"
    assert set(recorded.values()) == {"PLANNED"}


def test_yielded_evaluations_take_the_place_of_the_planned_ones(tmp_path: Path) -> None:
    """An AssetCheckEvaluation of a run and partition is matched to the row planned for it."""

    @dg.multi_asset_check(specs=(specs := preview_specs()))
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        for key in context.op_execution_context.partition_keys:
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("raw"), check_name="kept", passed=True, partition=key
            )
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    instance, result = _run(check, tmp_path)
    assert result.success
    assert _recorded(instance) == dict.fromkeys(
        ["2024-01-02|b", "2024-01-03|b", "2024-01-04|b"], "SUCCEEDED"
    )


def test_a_blocking_evaluation_of_one_partition_fails_the_step(tmp_path: Path) -> None:
    """candle_schema protects the table: nothing downstream runs."""

    @dg.multi_asset_check(specs=(specs := preview_specs(blocking=True)))
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        for key in context.op_execution_context.partition_keys:
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("raw"),
                check_name="kept",
                passed=key != "2024-01-03|b",
                partition=key,
                blocking=True,
            )
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    instance, result = _run(check, tmp_path)
    assert not result.success
    assert _recorded(instance)["2024-01-03|b"] == "FAILED"


def test_metadata_of_one_partition_of_a_range_stands_at_that_partition(tmp_path: Path) -> None:
    """add_asset_metadata(partition_key=…), also when called while an IO manager consumes."""

    @dg.multi_asset_check(specs=(specs := preview_specs()))
    def check() -> Iterator[Any]:
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    _, result = _run(check, tmp_path)
    noted = {
        event.partition: event.materialization.metadata["key"].value
        for event in result.get_asset_materialization_events()
    }
    assert noted == {key: key for key in ["2024-01-02|b", "2024-01-03|b", "2024-01-04|b"]}


def test_ranges_of_multi_partitions_follow_the_configured_order_of_exchanges() -> None:
    """A rectangle from b to a holds both, since b is configured first."""
    keys = PARTITIONS.get_partition_keys_in_range(
        dg.PartitionKeyRange("2024-01-02|b", "2024-01-03|a")
    )
    assert {str(key) for key in keys} == {
        "2024-01-02|b", "2024-01-03|b", "2024-01-02|a", "2024-01-03|a",
    }  # fmt: skip
    assert all(isinstance(key, dg.MultiPartitionKey) for key in keys)


def test_dagster_packages_are_of_one_release_and_sqlalchemy_keeps_psycopg2_the_default() -> None:
    """dagster-postgres fails on psycopg 3, which SQLAlchemy 2.1 makes the default driver."""
    assert version("dagster") == version("dagster-webserver")
    assert version("dagster-postgres").split(".")[-1] == version("dagster").split(".")[-1]
    assert make_url("postgresql://host/db").get_dialect().driver == "psycopg2"


def test_a_dead_run_is_run_again_once_and_one_that_must_not_be_is_not(tmp_path: Path) -> None:
    """``run_retries`` by reason and tag: a run without a failed step was killed."""
    from dagster._core.events import RunFailureReason
    from dagster._core.execution.retries import auto_reexecution_should_retry_run

    @dg.job
    def job() -> None: ...

    (tmp_path / "dagster.yaml").write_text(
        "run_retries: {enabled: true, max_retries: 1, retry_on_asset_or_op_failure: false}\n"
        "telemetry: {enabled: false}\n"
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def again(reason: RunFailureReason, **tags: str) -> bool:
            run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.FAILURE, tags=tags)
            return auto_reexecution_should_retry_run(instance, run, reason)

        assert again(RunFailureReason.UNKNOWN)
        assert not again(RunFailureReason.STEP_FAILURE)
        assert not again(RunFailureReason.UNKNOWN, **{"dagster/max_retries": "0"})


def test_backfills_wait_for_a_code_server_that_is_away_when_told_so_by_the_environment() -> None:
    """Without the variable that cli/environment.py sets, they fail for good."""
    from dagster._core.execution import asset_backfill

    source = Path(asset_backfill.__file__).read_text()
    assert 'os.environ.get("DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR")' in source


def test_a_code_server_that_met_an_absent_database_no_longer_lets_go_of_its_runs() -> None:
    """Its one thread that does ends with the first error. Why `up` starts it anew afterwards."""
    from types import SimpleNamespace

    from dagster._grpc.server import DagsterApiServer

    def away() -> None:
        raise ConnectionError

    event = SimpleNamespace(wait=lambda seconds: None, is_set=lambda: False)
    server = SimpleNamespace(_server_termination_event=event, _check_for_orphaned_runs=away)
    with pytest.raises(ConnectionError):
        DagsterApiServer._cleanup_thread(server)  # type: ignore[arg-type]


def test_msgspec_reads_minus_nothing_as_an_integer() -> None:
    """Why core/rows.py reads a page with such a text the careful way: the number has a sign."""
    (read,) = msgspec.json.decode('["-0"]', type=list[float], strict=False)
    assert math.copysign(1, read) == 1
    assert math.copysign(1, float("-0")) == -1
