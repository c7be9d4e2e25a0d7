"""Dagster's storage over kept connections: the instance of ``dagster.yaml``, on a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from crypto_pipeline.cli.environment import project_file
from crypto_pipeline.database.connection import connect
from crypto_pipeline.orchestration.instance_storage import PooledPostgresStorage
from crypto_pipeline.settings import DAGSTER_URL


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def instance(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv(DAGSTER_URL, url)
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
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert ended
    assert materialize(instance).success


def test_the_project_s_instance_uses_it(instance: dg.DagsterInstance) -> None:
    """A key of dagster.yaml that Dagster did not read would be no error."""
    ref = instance.get_ref()
    assert ref.storage is not None
    assert isinstance(ref.storage, PooledPostgresStorage)
