"""A run whose process died is marked failed by run monitoring; one that lives never is."""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.monitoring.run_monitoring import execute_run_monitoring_iteration

from crypto_pipeline.orchestration import workers
from crypto_pipeline.orchestration.launcher import ForkingRunLauncher

PROJECT = Path(__file__).parents[2]


@dg.op
def wait_for_the_file(context: dg.OpExecutionContext) -> None:
    while not Path(context.instance.root_directory, "go on").exists():
        time.sleep(0.01)


@dg.job(executor_def=workers.run_executor)
def waiting_job() -> None:
    wait_for_the_file()


CHILD = """
import sys, dagster as dg
from crypto_pipeline_tests.orchestration.test_launcher import waiting_job
with dg.DagsterInstance.get() as instance:
    dg.execute_job(dg.reconstructable(waiting_job), instance)
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """With this project's launcher and monitoring, and storage on files."""
    ours = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    kept = {
        name: ours[name] for name in ("run_launcher", "run_monitoring", "run_retries", "telemetry")
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(kept))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def start(
    instance: dg.DagsterInstance,
) -> Iterator[Callable[[], tuple[subprocess.Popen[bytes], str]]]:
    """Starts a run in a process of its own, and waits until it goes on."""
    started: list[subprocess.Popen[bytes]] = []

    def make() -> tuple[subprocess.Popen[bytes], str]:
        environment = {**os.environ, "DAGSTER_HOME": instance.root_directory}
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", CHILD], env=environment)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (locks := list(_locks(instance).glob("*.lock"))):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        return process, locks[0].stem

    yield make
    for process in started:
        process.kill()
        process.wait()


def _locks(instance: dg.DagsterInstance) -> Path:
    return Path(instance.root_directory) / "run_workers"


def _monitor(instance: dg.DagsterInstance) -> None:
    """One look of Dagster's run monitoring, as its daemon takes it."""
    with WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace:
        errors = list(execute_run_monitoring_iteration(workspace, logging.getLogger("test")))
    assert not any(errors)


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_killed_run_is_failed_at_the_next_look_and_a_stopped_one_is_not(
    instance: dg.DagsterInstance, start: Callable[[], tuple[subprocess.Popen[bytes], str]]
) -> None:
    """It stayed STARTED for ten minutes, or six hours, and its exchange was skipped as long."""
    assert isinstance(instance.run_launcher, ForkingRunLauncher)
    process, run_id = start()
    for number in (0, signal.SIGSTOP):
        process.send_signal(number)
        _monitor(instance)
        assert _status(instance, run_id) == dg.DagsterRunStatus.STARTED
    process.kill()
    process.wait()
    _monitor(instance)
    assert _status(instance, run_id) == dg.DagsterRunStatus.FAILURE


def test_a_run_that_ends_while_it_is_looked_at_is_not_taken_for_dead(
    instance: dg.DagsterInstance,
    start: Callable[[], tuple[subprocess.Popen[bytes], str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its lock is free when it is asked for, its status was read before. Dagster reads it again."""
    process, run_id = start()
    genuine = ForkingRunLauncher.check_run_worker_health

    def after_its_end(launcher: ForkingRunLauncher, run: dg.DagsterRun) -> object:
        assert run.status == dg.DagsterRunStatus.STARTED
        lock = _locks(instance) / f"{run_id}.lock"
        lock.with_suffix(".kept").hardlink_to(lock)
        Path(instance.root_directory, "go on").touch()
        assert process.wait() == 0
        assert not lock.exists()
        lock.with_suffix(".kept").rename(lock)  # as if it had not come to removing it
        found = genuine(launcher, run)
        assert found.status.value == "FAILED"
        return found

    monkeypatch.setattr(ForkingRunLauncher, "check_run_worker_health", after_its_end)
    _monitor(instance)
    assert _status(instance, run_id) == dg.DagsterRunStatus.SUCCESS


def test_a_run_that_never_said_it_lives_is_left_alone(instance: dg.DagsterInstance) -> None:
    """One on another machine, or of an older version: only its time limit ends it."""
    run = instance.create_run_for_job(waiting_job, status=dg.DagsterRunStatus.STARTED)
    assert workers.lives(instance, run.run_id) is None
    _monitor(instance)
    assert _status(instance, run.run_id) == dg.DagsterRunStatus.STARTED


def test_locks_of_dead_runs_are_swept_after_a_day_and_no_living_one(
    instance: dg.DagsterInstance,
) -> None:
    """A killed run leaves its file: evidence for monitoring first, then rubbish."""
    folder = _locks(instance)
    with workers.held_lock(instance, "living"):
        for name in ("old", "young"):
            (folder / f"{name}.lock").touch()
        day = time.time() - 90_000
        for name in ("living", "old"):
            os.utime(folder / f"{name}.lock", (day, day))
        with workers.held_lock(instance, "new"):
            assert {path.stem for path in folder.iterdir()} == {"living", "young", "new"}
    assert {path.stem for path in folder.iterdir()} == {"young"}
    assert workers.lives(instance, "young") is False


def test_retries_do_not_multiply() -> None:
    """Requests are retried by tenacity, dead runs once by Dagster, the rest by schedule and sensor."""
    ours = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    assert ours["run_retries"] == {
        "enabled": True,
        "max_retries": 1,
        "retry_on_asset_or_op_failure": False,
    }
    assert ours["run_monitoring"]["max_resume_run_attempts"] == 0
    assert ours["run_monitoring"]["poll_interval_seconds"] <= 30
