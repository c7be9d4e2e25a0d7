"""Dagster's storage over kept connections: the instance of ``dagster.yaml``, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import DagsterEvent, StepMaterializationData
from sqlalchemy import text

from crypto_pipeline.cli.environment import project_file
from crypto_pipeline.database.connection import connect
from crypto_pipeline.orchestration.check_results import _newest_materializations
from crypto_pipeline.orchestration.instance_storage import PooledPostgresStorage
from crypto_pipeline.orchestration.tags import RANGE_END, RANGE_START
from crypto_pipeline.settings import DAGSTER_URL, EVENT_BATCH


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def instance(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv(DAGSTER_URL, url)
    monkeypatch.setenv(EVENT_BATCH, "100")
    (tmp_path / "dagster.yaml").write_text(project_file("dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def sessions(url: str) -> int:
    with connect(url) as conn:
        row = conn.execute(
            "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def materialize(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    @dg.asset
    def one() -> None: ...

    @dg.asset_check(asset=one)
    def fine() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    return dg.materialize([one, fine], instance=instance)


def test_a_run_keeps_its_connections(instance: dg.DagsterInstance, url: str) -> None:
    """Two or three logins an event were half of a backfill's time."""
    materialize(instance)
    before = sessions(url)
    result = materialize(instance)
    assert sessions(url) - before <= 3  # one of them this function's own
    events = instance.all_logs(result.run_id)
    assert len(events) > 15
    assert instance.get_asset_keys() == [dg.AssetKey("one")]


def test_a_server_that_was_restarted_is_no_error(instance: dg.DagsterInstance, url: str) -> None:
    """Kept connections are dead then: the run that used one would fail, or lose an event."""
    materialize(instance)
    with connect(url) as conn:
        ended = conn.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    assert materialize(instance).success


def materialized(key: str, partition: int) -> dg.EventLogEntry:
    """As a step of a range run says it."""
    fact = dg.AssetMaterialization(
        key, partition=str(partition), tags={"dagster/partition/day": f"{partition}"}
    )
    return dg.EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id="run",
        timestamp=1_700_000_000.0 + partition,
        step_key=key,
        job_name="job",
        dagster_event=DagsterEvent(
            dg.DagsterEventType.ASSET_MATERIALIZATION.value,
            "job",
            step_key=key,
            event_specific_data=StepMaterializationData(fact),
        ),
    )


def test_the_newest_materializations_are_those_that_dagster_finds(
    instance: dg.DagsterInstance,
) -> None:
    storage: Any = instance.event_log_storage
    for key, partitions in (("many", range(30)), ("few", range(5)), ("many", range(10, 20))):
        storage.store_event_batch([materialized(key, partition) for partition in partitions])
    asset, wanted = dg.AssetKey("many"), [str(partition) for partition in range(5, 40)]
    found = storage.newest_materializations(asset, wanted)
    assert found == _newest_materializations(instance, asset, wanted)
    assert sorted(found, key=int) == [str(partition) for partition in range(5, 30)]
    instance.wipe_assets([asset])
    assert storage.newest_materializations(asset, wanted) == {}
    assert _newest_materializations(instance, asset, wanted) == {}


def test_the_schema_is_asked_until_it_was_seen(instance: dg.DagsterInstance, url: str) -> None:
    """A database that Dagster has yet to migrate is one without the newest columns."""
    result = materialize(instance)
    record = instance.get_run_record_by_id(result.run_id)
    assert record is not None
    assert record.end_time is not None
    with connect(url) as conn:
        conn.execute("ALTER TABLE runs DROP COLUMN end_time")
        storage: Any = PooledPostgresStorage(url).run_storage
        assert not storage.has_run_stats_index_cols()
        conn.execute("ALTER TABLE runs ADD COLUMN end_time float")
        assert storage.has_run_stats_index_cols()


DAYS = dg.StaticPartitionsDefinition([f"2024-01-{day:02}" for day in range(1, 31)])
RESULTS = """
SELECT c.asset_key, c.check_name, c.partition, c.execution_status, c.run_id = e.run_id,
    e.dagster_event_type, e.step_key, e.partition, m.partition, m.dagster_event_type,
    c.evaluation_event = e.event, c.evaluation_event_timestamp = e.timestamp
FROM asset_check_executions AS c
LEFT JOIN event_logs AS e ON e.id = c.evaluation_event_storage_id
LEFT JOIN event_logs AS m ON m.id = c.materialization_event_storage_id
ORDER BY array_position(%s::text[], c.run_id::text), 1, 2, 3
"""

#: What the runs intended, in order, and what is known of the asset.
INTENDED = """
SELECT run_id = %(last)s, dagster_event_type, step_key, asset_key, partition
FROM event_logs WHERE dagster_event_type LIKE '%%PLANNED' ORDER BY id
"""
ASSETS = """
SELECT asset_key, last_run_id = %(last)s, last_materialization IS NULL,
    last_materialization_timestamp = (SELECT max(timestamp) FROM event_logs AS e
        WHERE e.asset_key = asset_keys.asset_key AND dagster_event_type LIKE 'ASSET_MATER%%')
FROM asset_keys
"""


def judge_days(instance: dg.DagsterInstance, *, may_fail: bool = False) -> list[str]:
    """A range run whose checks say something of each day, one of them twice; then one that dies, one that waits."""
    specs = [
        dg.AssetCheckSpec(name, asset="many", partitions_def=DAYS if name == "sound" else None)
        for name in ("sound", "whole")
    ]

    @dg.asset(partitions_def=DAYS, backfill_policy=dg.BackfillPolicy.single_run())
    def many() -> None: ...

    def checks(*, dies: bool) -> dg.AssetChecksDefinition:
        @dg.multi_asset_check(specs=specs)
        def judged() -> Iterator[object]:
            for number, day in enumerate([*DAYS.get_partition_keys(), "2024-01-07"]):
                if dies and number == 20:
                    raise RuntimeError("dies")
                for spec in specs:
                    yield dg.AssetCheckEvaluation(
                        asset_key=spec.asset_key,
                        check_name=spec.name,
                        passed=number % 3 > 0,
                        partition=day,
                        severity=dg.AssetCheckSeverity.ERROR,
                    )
            for spec in specs:
                yield dg.Output(None, output_name=spec.get_python_identifier())

        return judged

    span = {RANGE_START: "2024-01-01", RANGE_END: "2024-01-30"}
    runs = []
    for dies in (False, True):
        definitions = dg.Definitions(assets=[many], asset_checks=[checks(dies=dies)])
        job = definitions.resolve_implicit_global_asset_job_def()
        runs.append(job.execute_in_process(instance=instance, tags=span, raise_on_error=False))
    assert may_fail or [run.success for run in runs] == [True, False]
    waiting = instance.create_run_for_job(job, tags=span)
    return [*(run.run_id for run in runs), waiting.run_id]


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning")
def test_results_of_checks_stand_as_dagster_stores_them(
    instance: dg.DagsterInstance, url: str, new_database: Callable[[], str], tmp_path: Path
) -> None:
    """A hundred at a time, and a step that fails says what it had found all the same.

    So do those of what runs intend.
    """
    theirs = new_database()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: {theirs!r}}}}}"
    )
    with dg.DagsterInstance.from_config(str(tmp_path / "theirs")) as plain:
        found = []
        for each, where in ((instance, url), (plain, theirs)):
            runs = judge_days(each)
            with connect(where) as conn:
                found.append(conn.execute(RESULTS, [runs]).fetchall())
                order = conn.execute(
                    "SELECT dagster_event_type, partition FROM event_logs WHERE run_id = %s"
                    " AND dagster_event_type LIKE %s ORDER BY id",
                    [runs[0], "ASSET_CHECK_EVALUATION"],
                ).fetchall()
            found[-1].extend(order)
    assert found[0] == found[1]
    assert len(found[0]) > 150


def test_materializations_stand_as_dagster_stores_them(
    instance: dg.DagsterInstance, url: str, new_database: Callable[[], str], tmp_path: Path
) -> None:
    theirs = new_database()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "dagster.yaml").write_text(
        f"storage: {{postgres: {{postgres_url: {theirs!r}}}}}"
    )
    tables = [
        (
            "SELECT id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition"
            " FROM event_logs ORDER BY id"
        ),
        "SELECT event_id, asset_key, key, value, event_timestamp FROM asset_event_tags ORDER BY event_id",
        (
            "SELECT asset_key, last_materialization, last_run_id, asset_details, wipe_timestamp,"
            " last_materialization_timestamp, tags FROM asset_keys ORDER BY asset_key"
        ),
    ]
    with dg.DagsterInstance.from_config(str(tmp_path / "theirs")) as plain:
        found = []
        for each, where in ((instance, url), (plain, theirs)):
            for key in ("many", "few", "many"):
                batch = [materialized(key, partition) for partition in range(40)]
                each.event_log_storage.store_event_batch(batch)
            with connect(where) as conn:
                found.append([conn.execute(table).fetchall() for table in tables])
    assert found[0] == found[1]
    assert [len(rows) for rows in found[0]] == [120, 120, 2]


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning")
@pytest.mark.parametrize("away", ["broken", "read only"])
def test_results_that_could_not_be_stored_are_stored_later(
    instance: dg.DagsterInstance, url: str, away: str
) -> None:
    """Whoever was told of the failure may not care (a log line): they must not be gone for that."""
    storage = instance._event_storage
    store, attempts = storage._insert_results, []  # type: ignore[attr-defined]

    def fails_once(conn: Any, events: Any) -> None:
        attempts.append(len(events))
        if len(attempts) == 1 and away == "read only":
            conn.execute(text("SET TRANSACTION READ ONLY"))
        store(conn, events)
        if len(attempts) == 1:
            raise ConnectionError("away")

    storage._insert_results = fails_once  # type: ignore[attr-defined]
    runs = judge_days(instance, may_fail=True)
    with connect(url) as conn:
        found = conn.execute(
            "SELECT count(*), count(DISTINCT (partition, event::json -> 'dagster_event'"
            " -> 'event_specific_data' ->> 'check_name')) FROM event_logs"
            " WHERE run_id = %s AND dagster_event_type = 'ASSET_CHECK_EVALUATION'",
            [runs[0]],
        ).fetchone()
    assert attempts[1] == attempts[0]
    assert found is not None
    assert found[0] == 60  # each once: the first attempt left nothing


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning")
def test_a_result_that_is_refused_costs_no_other_and_is_told_once(
    instance: dg.DagsterInstance, url: str
) -> None:
    """A hundred would wait for ever behind one the database does not take."""
    instance.all_asset_keys()  # the tables are there
    with connect(url) as conn:
        conn.execute(
            "ALTER TABLE asset_check_executions ADD CONSTRAINT refused CHECK"
            " (partition <> '2024-01-05' OR check_name <> 'sound' OR execution_status = 'PLANNED')"
        )
    runs = judge_days(instance, may_fail=True)
    with connect(url) as conn:
        found = conn.execute(
            "SELECT execution_status, count(*) FROM asset_check_executions WHERE run_id = %s"
            " AND check_name = 'sound' GROUP BY 1 ORDER BY 1",
            [runs[0]],
        ).fetchall()
        twice = conn.execute(
            "SELECT count(*) FROM event_logs, LATERAL (SELECT event::json -> 'dagster_event'"
            " -> 'event_specific_data' AS told) AS found WHERE run_id = %s"
            " AND dagster_event_type = 'ASSET_CHECK_EVALUATION'"
            " AND told ->> 'partition' = '2024-01-07' AND told ->> 'check_name' = 'sound'",
            [runs[0]],
        ).fetchone()
    assert found == [("FAILED", 10), ("PLANNED", 1), ("SUCCEEDED", 19)]
    assert twice == (2,)  # the one whose coming stored the others
    (failed, *more) = (
        event.dagster_event
        for event in instance.all_logs(runs[0], of_type=dg.DagsterEventType.STEP_FAILURE)
    )
    assert not more
    assert failed is not None
    assert "refused" in str(failed.step_failure_data.error)


def test_the_project_s_instance_uses_it(instance: dg.DagsterInstance) -> None:
    """A key of dagster.yaml that Dagster did not read would be no error."""
    ref = instance.get_ref()
    assert ref.storage is not None
    assert isinstance(ref.storage, PooledPostgresStorage)
