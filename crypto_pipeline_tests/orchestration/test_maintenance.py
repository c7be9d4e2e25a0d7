"""Maintenance: what it forgets, and what it never does. On real runs, copied over twelve days."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.scheduler.instigation import InstigatorType, TickStatus
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value
from psycopg import sql

from crypto_pipeline.cli.environment import project_file
from crypto_pipeline.config.model import RetentionConfig
from crypto_pipeline.core.planning import LONGEST_PAUSE_MS
from crypto_pipeline.core.timeframes import utc
from crypto_pipeline.database.connection import connect
from crypto_pipeline.errors import ConfigError, DatabaseError
from crypto_pipeline.local import ServerInfo
from crypto_pipeline.orchestration import healing, maintenance
from crypto_pipeline.orchestration.history import GROWING, history_of
from crypto_pipeline.orchestration.maintenance import MAINTENANCE_JOB, RUN_HISTORY, maintain
from crypto_pipeline.orchestration.resources import ClockResource
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, HEALS_TAG
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.dagster_history import Template, copy_database
from crypto_pipeline_tests.pipelines import Pipeline

ASSETS = ("raw_ohlcv", "validated_ohlcv", "timescale_candles")
DAYS, A_DAY = 12, 6
RETENTION = RetentionConfig()
LOG = logging.getLogger("maintenance")


@dataclass
class Past:
    """A pipeline whose history is in PostgreSQL: twelve days of six minute runs each, and more."""

    pipeline: Pipeline
    instance: dg.DagsterInstance
    conn: psycopg.Connection
    url: str
    now: datetime

    def maintain(self, retention: RetentionConfig = RETENTION, **options: Any) -> Any:
        with history_of(self.instance) as history:
            assert history is not None
            return maintain(history, retention, self.now, log=LOG, **{"seconds": 600.0, **options})

    def job(self, **config: bool) -> dg.ExecuteInProcessResult:
        return self.pipeline.definitions.resolve_job_def(MAINTENANCE_JOB).execute_in_process(
            instance=self.instance,
            resources={"clock": ClockResource(lambda: self.now)},
            raise_on_error=False,
            run_config={
                "ops": {"bound_run_history": {"config": config}},
                "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
            },
        )

    def states(self) -> dict[tuple[str, str | None], Any]:
        """What the UI colours by, from the events themselves: its cache is thrown away first."""
        self.conn.execute("UPDATE asset_keys SET cached_status_data = NULL")
        graph = self.pipeline.definitions.resolve_asset_graph()
        found: dict[tuple[str, str | None], Any] = {}
        for asset in ASSETS:
            partitions = graph.get(dg.AssetKey(asset)).partitions_def
            cached = get_and_update_asset_status_cache_value(
                self.instance, dg.AssetKey(asset), partitions
            )
            found[asset, "done"] = set(
                cached.deserialize_materialized_partition_subsets(partitions).get_partition_keys()
            )
            found[asset, "failed"] = set(
                cached.deserialize_failed_partition_subsets(partitions).get_partition_keys()
            )
        for info in self.instance.event_log_storage.get_asset_check_partition_info(
            list(graph.asset_check_keys)
        ):
            found[info.check_key.to_user_string(), info.partition_key] = info
        return found

    def runs(self) -> set[str]:
        return {run for (run,) in self.conn.execute("SELECT run_id FROM runs")}

    def runs_of(self, day: date) -> list[str]:
        query = (
            "SELECT run_id FROM run_tags WHERE key = 'dagster/partition/date' AND value = %s"
            " ORDER BY id"
        )
        return [run for (run,) in self.conn.execute(query, [str(day)])]

    def counts(self) -> dict[str, int]:
        return {table.name: self.count(table.name) for table in GROWING}

    def count(self, table: str, where: str = "true") -> int:
        query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(
            sql.Identifier(table), sql.SQL(where)
        )
        ((count,),) = self.conn.execute(query).fetchall()
        return int(count)

    def add(self, ended: datetime, **run: Any) -> str:
        """A run without events, that ended then (if its status says it ended)."""
        status = run.pop("status", dg.DagsterRunStatus.SUCCESS)
        made = self.instance.add_run(dg.DagsterRun(job_name="ohlcv_job", status=status, **run))
        self.conn.execute(
            "UPDATE runs SET update_timestamp = %s WHERE run_id = %s",
            [ended.replace(tzinfo=None), made.run_id],
        )
        return made.run_id


@pytest.fixture(scope="module")
def template_database(
    server: ServerInfo,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Pipeline, str]]:
    """The past, made once; each test gets a copy of it."""
    from crypto_pipeline.simulator import running_simulator

    home = tmp_path_factory.mktemp("history")
    name = f"history_{uuid.uuid4().hex[:8]}"
    with connect(server.url("postgres")) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    simulated = SimulatorConfig.parse(
        {"exchanges": {"binance": {"symbols": ["BTC/USDT"], "port": 0}}}, origin="the test"
    )
    with running_simulator(simulated) as simulator:
        pipeline = Pipeline.over(
            simulator, home=home, database_url=new_database(), start=_today(simulator, -20)
        )
        with _instance(home, server.url(name)) as instance:
            vars(pipeline)["instance"] = instance
            _make(pipeline, server.url(name), simulator)
            del vars(pipeline)["instance"]
        yield pipeline, name


def _today(simulator: SimulatorHandle, days: int = 0) -> date:
    (exchange,) = simulator.control.overview()["exchanges"].values()
    return utc(exchange["now_ms"]).date() + timedelta(days=days)


def _make(pipeline: Pipeline, url: str, simulator: SimulatorHandle) -> None:
    today = _today(simulator)
    assert pipeline.tick("binance", str(today)).success
    assert pipeline.run(
        f"{today - timedelta(days=20)}|binance", f"{today - timedelta(days=18)}|binance"
    ).success
    with connect(url) as conn:
        (tick,) = [
            r for (r,) in conn.execute("SELECT run_id FROM run_tags WHERE key = %s", [EXCHANGE_TAG])
        ]
        template = Template(conn, [tick])
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        template.write(
            now - timedelta(days=DAYS) + timedelta(hours=24 / A_DAY * n) + timedelta(minutes=1)
            for n in range(DAYS * A_DAY)
        )
    simulator.control.stop_listening("binance")
    assert not pipeline.tick("binance", str(today - timedelta(days=6))).success
    with connect(url) as conn:
        # As if it had failed that day: the newest word about a partition that was green before.
        conn.execute("UPDATE runs SET end_time = end_time - 500000 WHERE status = 'FAILURE'")


def _instance(home: Path, url: str) -> Any:
    return dg.instance_for_test(
        temp_dir=str(home), overrides={"storage": {"postgres": {"postgres_url": url}}}
    )


@pytest.fixture
def past(
    server: ServerInfo, template_database: tuple[Pipeline, str], tmp_path: Path
) -> Iterator[Past]:
    pipeline, template = template_database
    name = f"past_{uuid.uuid4().hex[:8]}"
    with connect(server.url("postgres")) as conn:
        copy_database(conn, template, name)
    url = server.url(name)
    with _instance(tmp_path, url) as instance, connect(url) as conn:
        yield Past(pipeline, instance, conn, url, datetime.now(UTC))


def test_old_minute_runs_go_and_no_partition_loses_its_state(past: Past) -> None:
    """Green stays green, failed stays failed, each check's word stands; from events, not a cache."""
    # Days that were materialized, or failed to, without checks; and one whose checks alone ran again.
    past.conn.execute(
        "DELETE FROM asset_check_executions WHERE partition = %s"
        " OR run_id IN (SELECT run_id FROM runs WHERE status = 'FAILURE')",
        [f"{past.now.date() - timedelta(days=5)}|binance"],
    )
    past.conn.execute(
        "DELETE FROM event_logs WHERE dagster_event_type LIKE 'ASSET_MATERIALIZATION%%'"
        " AND run_id = %s",
        [past.runs_of(past.now.date() - timedelta(days=4))[-1]],
    )
    before, first = past.states(), past.runs()
    report = past.maintain()
    assert past.states() == before
    assert len(before["raw_ohlcv", "done"]) >= DAYS + 3
    assert len(before["raw_ohlcv", "failed"]) == 1
    gone = first - past.runs()
    assert len(gone) == report["runs deleted"]
    # Six a day for the nine days beyond three, but for the last of each day.
    assert (DAYS - 3) * A_DAY - 12 <= len(gone) <= (DAYS - 3) * (A_DAY - 1) + 1
    assert report["runs kept for their state"] >= DAYS - 4
    assert report["runs remembered"] == len(past.runs())


def test_nothing_of_a_forgotten_run_is_left_in_any_table(past: Past) -> None:
    """Dagster's own delete_run leaves check results for ever."""
    past.maintain()
    for table in ("event_logs", "asset_check_executions", "run_tags"):
        assert past.count(table, "run_id <> '' AND run_id NOT IN (SELECT run_id FROM runs)") == 0
    assert past.count("asset_event_tags", "event_id NOT IN (SELECT id FROM event_logs)") == 0
    again = past.counts()
    assert past.maintain()["runs deleted"] == 0
    assert past.counts() == again


def test_a_run_that_lost_its_partition_to_a_newer_one_goes_then(past: Past) -> None:
    """What is kept for its state is bounded by the number of partitions, however often they run."""
    past.maintain(RetentionConfig(minute_runs_days=1))
    (held,) = past.runs_of(past.now.date() - timedelta(days=5))
    template = Template(past.conn, [held])
    template.write([past.now - timedelta(days=5)])
    assert past.maintain(RetentionConfig(minute_runs_days=1))["runs deleted"] == 1
    assert held not in past.runs()


def test_other_runs_stay_longer_and_those_under_way_stay(past: Past) -> None:
    """A backfill of weeks still counts its runs; the sensor that fills gaps looks at its last ten."""
    instance = past.instance
    month, week = past.now - timedelta(days=31), past.now - timedelta(days=7)
    for key, status in (
        ("open", BulkActionStatus.REQUESTED),
        ("done", BulkActionStatus.COMPLETED_SUCCESS),
    ):
        instance.add_backfill(
            PartitionBackfill(
                backfill_id=key, status=status, from_failure=False, tags={"a": "b"},
                backfill_timestamp=month.timestamp(),
            )
        )  # fmt: skip
    kept = {
        past.add(month, tags={"dagster/backfill": "open"}),
        past.add(month, status=dg.DagsterRunStatus.STARTED),
        past.add(month, status=dg.DagsterRunStatus.NOT_STARTED, tags={EXCHANGE_TAG: "binance"}),
        past.add(week, tags={HEALS_TAG: "binance"}, status=dg.DagsterRunStatus.FAILURE),
        past.add(past.now, tags={EXCHANGE_TAG: "binance"}),
    }
    gone = {
        past.add(month, tags={"dagster/backfill": "done"}),
        past.add(month, status=dg.DagsterRunStatus.CANCELED),
        past.add(week, tags={EXCHANGE_TAG: "binance"}, status=dg.DagsterRunStatus.FAILURE),
    }
    report = past.maintain()
    assert kept <= past.runs()
    assert not gone & past.runs()
    assert report["backfills deleted"] == 1
    assert [backfill.backfill_id for backfill in instance.get_backfills()] == ["open"]
    assert past.count("backfill_tags", "backfill_id = 'done'") == 0


def test_what_a_deletion_in_the_ui_left_behind_goes_but_for_the_newest_results(past: Past) -> None:
    """delete_run forgets check results; the newest of a partition is still what the UI shows."""
    before = past.states()
    for run in past.runs_of(past.now.date() - timedelta(days=5)):
        past.instance.delete_run(run)
    results = past.count("asset_check_executions")
    past.now += timedelta(days=31)
    report = past.maintain(RetentionConfig(minute_runs_days=60))
    # Of six runs with six results each, the last one's stay.
    assert report["check results deleted"] == results - past.count("asset_check_executions") == 30
    assert past.states().keys() == before.keys()


def test_a_batch_that_fails_leaves_each_run_whole_or_gone(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a batch: no events without their run, and the next one goes on."""
    monkeypatch.setattr(maintenance, "_BATCH", 8)
    before, events = past.states(), _events_of_runs(past.conn)
    with history_of(past.instance) as history:
        assert history is not None
        limit = past.now - timedelta(days=3)
        victim = history.candidates(minute_runs_before=limit, runs_before=limit).forgettable[12]
    past.conn.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no'; END $$"
    )
    past.conn.execute(
        sql.SQL(
            "CREATE TRIGGER refuse BEFORE DELETE ON runs FOR EACH ROW WHEN (OLD.run_id = {})"
            " EXECUTE FUNCTION refuse()"
        ).format(victim)
    )
    with pytest.raises(DatabaseError, match="The run history cannot be read or written: no"):
        past.maintain()
    now = _events_of_runs(past.conn)
    assert 0 < len(now) < len(events)
    assert now == {run: events[run] for run in now}
    assert past.states() == before
    past.conn.execute("DROP TRIGGER refuse ON runs")
    assert past.maintain()["runs left for the next time"] == 0
    assert past.states() == before


def test_what_does_not_fit_into_the_time_is_left_for_the_next_one(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A history of months must not make the first maintenance run for hours."""
    monkeypatch.setattr(maintenance, "_BATCH", 8)
    report = past.maintain(seconds=-1.0)
    assert report["runs deleted"] == 0
    assert report["runs left for the next time"] > 0
    assert past.maintain()["runs deleted"] == report["runs left for the next time"]


def test_the_job_reports_numbers_the_ui_plots_and_a_second_one_stands_back(past: Past) -> None:
    """As Dagster runs it; the reports are one asset's materializations."""
    with history_of(past.instance) as first:
        assert first is not None
        beside = past.job()
        assert beside.success
        assert past.count("event_logs", "asset_key LIKE '%run_history%'") == 0
    result = past.job(compact=True)
    assert result.success
    (event,) = result.get_asset_materialization_events()
    assert event.asset_key == RUN_HISTORY.key
    numbers = {name: value.value for name, value in event.materialization.metadata.items()}
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert numbers["runs deleted"] > 0
    assert 0 < numbers["bytes"] < numbers["bytes before"]


def test_an_instance_without_postgresql_says_so(tmp_path: Path) -> None:
    """Nothing would be bounded there, and nobody would know."""
    with (
        dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance,
        pytest.raises(ConfigError, match="in one PostgreSQL database"),
        history_of(instance),
    ):
        pass


def test_an_hourly_run_unless_one_goes_on(past: Past) -> None:
    """One that takes long must not be joined by a second one every hour."""
    schedule = past.pipeline.definitions.resolve_schedule_def("maintenance_hourly")

    def tick() -> Any:
        with dg.build_schedule_context(
            instance=past.instance, scheduled_execution_time=past.now
        ) as context:
            return schedule(context)

    assert isinstance(tick(), dg.RunRequest)
    past.instance.add_run(
        dg.DagsterRun(job_name=MAINTENANCE_JOB, status=dg.DagsterRunStatus.STARTED)
    )
    assert "still goes on" in tick().skip_message


def test_maintenance_is_in_no_selection_of_all_assets(past: Past) -> None:
    """`--select '*' --partition …` and ohlcv_job mean the candles."""
    graph = past.pipeline.definitions.resolve_asset_graph()
    for selection in (dg.AssetSelection.all(), dg.AssetSelection.from_string("*")):
        assert {key.to_user_string() for key in selection.resolve(graph)} == set(ASSETS)


def test_no_healing_run_is_forgotten_while_its_failures_are_counted() -> None:
    """The pause grows with the failures in a row: forgetting one would shorten it."""
    shortest = RetentionConfig.model_fields["runs_days"].metadata[0].ge
    assert timedelta(days=shortest) > timedelta(milliseconds=LONGEST_PAUSE_MS) * healing._RECENT


def test_ticks_of_schedules_and_sensors_are_bounded_whatever_came_of_them(tmp_path: Path) -> None:
    """Dagster purges them at each tick, those of the new schedule as well; skips the sooner."""
    document = yaml.safe_load(project_file("dagster.yaml").read_text())
    with dg.instance_for_test(
        temp_dir=str(tmp_path), overrides={"retention": document["retention"]}
    ) as instance:
        for kind in (InstigatorType.SCHEDULE, InstigatorType.SENSOR):
            settings = instance.get_tick_retention_settings(kind)
            assert set(settings) == set(TickStatus)
            assert all(0 < days <= 7 for days in settings.values())


def _events_of_runs(conn: psycopg.Connection) -> dict[str, int]:
    """By run, how many events it has; a run without any counts too."""
    events = Counter(run for (run,) in conn.execute("SELECT run_id FROM event_logs"))
    return {run: events[run] for (run,) in conn.execute("SELECT run_id FROM runs")}
