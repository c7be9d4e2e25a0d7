"""Whether the process of a run lives: a lock of its own, which the kernel frees however it ends.

Dagster's default launcher cannot tell a dead process from a busy one, and its code server forgets
its runs when it is killed. A process id is no answer either: ids are reused, and the clock by which
two processes of one id are told apart may jump. So each run's process holds a lock on
``$DAGSTER_HOME/run_workers/<run id>.lock`` from its first step to its last breath, and the launcher
(:mod:`.launcher`) asks the lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

# Not exported by dagster, and the only way to act in a run's process before its first step.
from dagster._core.execution.retries import RetryMode  # noqa: TID251
from dagster._core.execution.step_dependency_config import StepDependencyConfig  # noqa: TID251
from dagster._core.executor.in_process import InProcessExecutor  # noqa: TID251

from crypto_pipeline.database.kept import connections_kept
from crypto_pipeline.orchestration.ahead import nothing_more

if TYPE_CHECKING:
    from dagster._core.events import DagsterEvent  # noqa: TID251

_FOLDER: Final = "run_workers"

#: Locks of dead runs are evidence until run monitoring has seen them; then they are rubbish.
_KEPT_SECONDS: Final = 86_400.0


def hold_lock(instance: dg.DagsterInstance, run_id: str) -> int:
    """Say that this process carries out the run, until it ends; the lock's file descriptor.

    The file appears under its name with the lock held, so nobody ever sees it free too early.
    """
    path = _path(instance, run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    new = path.with_suffix(f".{os.getpid()}.new")
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.write(lock, str(os.getpid()).encode())
    new.replace(path)
    # Also in a child of multiprocessing, as runs are, where atexit's functions are not called.
    Finalize(None, _forget, args=(path, os.getpid()), exitpriority=0)
    return lock


@contextmanager
def held_lock(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """As :func:`hold_lock`, for a process that carries out several runs."""
    lock = hold_lock(instance, run_id)
    try:
        yield
    finally:
        _path(instance, run_id).unlink(missing_ok=True)
        os.close(lock)


def lives(instance: dg.DagsterInstance, run_id: str) -> bool | None:
    """Whether the run's process lives; None if it never said so here (another machine's, perhaps)."""
    try:
        lock = os.open(_path(instance, run_id), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def process_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process that carries out the run, if it lives on this machine: its id cannot be reused."""
    if not lives(instance, run_id):
        return None
    text = _path(instance, run_id).read_text(encoding="ascii")
    return int(text) if text else None


class _LockingExecutor(InProcessExecutor):
    """Dagster's own in-process executor in a process that says that it lives, and keeps connections."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        # Not let go of at the last step's end: Dagster has yet to note how the run ended.
        hold_lock(plan_context.instance, plan_context.run_id)
        with connections_kept():
            try:
                yield from super().execute(plan_context, execution_plan)
            finally:
                nothing_more()


def _make_executor(init_context: dg.InitExecutorContext) -> InProcessExecutor:
    config = init_context.executor_config
    return _LockingExecutor(
        retries=RetryMode.from_config(config["retries"]),  # type: ignore[arg-type]
        step_dependency_config=StepDependencyConfig.from_config(
            config.get("step_dependency_config")  # type: ignore[arg-type]
        ),
    )


#: All steps in the run's one process: one a step costs seconds. Configured as Dagster's own.
run_executor: Final = dg.ExecutorDefinition(
    name="in_process",
    config_schema=dg.in_process_executor.config_schema.as_field(),
    executor_creation_fn=_make_executor,
)


def _path(instance: dg.DagsterInstance, run_id: str) -> Path:
    return Path(instance.root_directory) / _FOLDER / f"{run_id}.lock"


def _forget(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a child that was forked
        path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed runs left a day ago: a lock that is held is young, or of a living run."""
    for path in folder.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT_SECONDS:
                lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(lock)
