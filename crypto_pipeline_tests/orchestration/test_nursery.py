"""Runs forked off a warm process: real ones, of a job of this file, on an instance on files."""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster._core.launcher import LaunchRunContext

from crypto_pipeline.orchestration import workers
from crypto_pipeline.orchestration.launcher import ForkingRunLauncher
from crypto_pipeline.settings import CONFIG
from crypto_pipeline_tests.orchestration.test_launcher import PROJECT, waiting_job

SECONDS = 60


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline file of its own: a change of it is seen by the nursery."""
    path = tmp_path / "pipeline.yaml"
    path.write_text((PROJECT / "pipeline.yaml").read_text())
    monkeypatch.setenv(CONFIG, str(path))
    return path


@pytest.fixture
def instance(tmp_path: Path, config: Path) -> Iterator[dg.DagsterInstance]:
    launcher = yaml.safe_load((PROJECT / "dagster.yaml").read_text())["run_launcher"]
    home = tmp_path / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(
        yaml.safe_dump({"run_launcher": launcher, "telemetry": {"enabled": False}})
    )
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance
        go_on(instance)


def go_on(instance: dg.DagsterInstance) -> None:
    Path(instance.root_directory, "go on").touch()


def until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def launch(instance: dg.DagsterInstance) -> str:
    origin = dg.reconstructable(waiting_job).get_python_origin()
    run = instance.create_run_for_job(waiting_job, job_code_origin=origin)
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    until(lambda: workers.process_of(instance, run.run_id), "the run does not begin")
    return run.run_id


def wait_for(instance: dg.DagsterInstance, run_id: str, status: dg.DagsterRunStatus) -> None:
    def is_so() -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.status == status

    until(is_so, f"not {status}")


def nursery(instance: dg.DagsterInstance) -> psutil.Process:
    launcher = instance.run_launcher
    assert isinstance(launcher, ForkingRunLauncher)
    assert launcher._nursery._process is not None
    return psutil.Process(launcher._nursery._process.pid)


def test_runs_are_forked_off_one_process_and_end_as_any(instance: dg.DagsterInstance) -> None:
    """Each started Python and imported Dagster, pandas and ccxt: 2 s of CPU for a minute run."""
    runs = [launch(instance) for _ in range(2)]
    processes = {workers.process_of(instance, run_id) for run_id in runs}
    assert processes == {child.pid for child in nursery(instance).children()}
    go_on(instance)
    for run_id in runs:
        wait_for(instance, run_id, dg.DagsterRunStatus.SUCCESS)
    until(lambda: not nursery(instance).children(), "zombies are left")


def test_a_run_is_ended_from_the_ui(instance: dg.DagsterInstance) -> None:
    """Terminate: by signal, to the process that holds the run's lock."""
    run_id = launch(instance)
    assert instance.run_launcher.terminate(run_id)
    wait_for(instance, run_id, dg.DagsterRunStatus.CANCELED)
    assert not instance.run_launcher.terminate(run_id)


def test_runs_outlive_the_nursery_and_the_next_gets_a_new_one(instance: dg.DagsterInstance) -> None:
    """Out of memory, a kill by mistake, a daemon that is started again."""
    first = launch(instance)
    killed = nursery(instance)
    killed.send_signal(signal.SIGKILL)
    killed.wait(SECONDS)
    second = launch(instance)
    assert nursery(instance) != killed
    assert workers.lives(instance, first)
    instance.run_launcher.dispose()
    go_on(instance)
    for run_id in (first, second):
        wait_for(instance, run_id, dg.DagsterRunStatus.SUCCESS)


def test_a_changed_pipeline_file_is_seen_by_the_next_run(
    instance: dg.DagsterInstance, config: Path
) -> None:
    """A run of yesterday's configuration, with nothing that said so."""
    first = launch(instance)
    born = nursery(instance).cpu_times().user
    config.write_text(config.read_text() + "# changed\n")
    second = launch(instance)
    assert nursery(instance).cpu_times().user > born + 0.1, "it imported all anew"
    processes = {workers.process_of(instance, run_id) for run_id in (first, second)}
    assert processes == {child.pid for child in nursery(instance).children()}
    go_on(instance)
    for run_id in (first, second):
        wait_for(instance, run_id, dg.DagsterRunStatus.SUCCESS)


def test_a_broken_pipeline_file_is_the_run_s_to_tell(
    instance: dg.DagsterInstance, config: Path
) -> None:
    """The nursery must not die of it: the message would be in a log nobody reads."""
    config.write_text("exchanges: 7\n")
    run_id = launch(instance)  # of a job that needs no configuration
    assert os.getpid() in {parent.pid for parent in nursery(instance).parents()}
    go_on(instance)
    wait_for(instance, run_id, dg.DagsterRunStatus.SUCCESS)
