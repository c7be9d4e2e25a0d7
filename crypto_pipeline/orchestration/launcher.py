"""The run launcher: runs forked off a process that has imported all they need, and watched.

Chosen in ``dagster.yaml``. Dagster's default one has the code server start Python anew for each run,
and cannot tell a dead run from a busy one. Here the process that launches (the daemon) keeps a
:mod:`.nursery`; a run is Dagster's own ``api execute_run`` in a process of its own, which lives on
when daemon, nursery or code server end.

Run monitoring asks at each interval about every run that has started, and marks those failed whose
process is gone (:mod:`.workers`); ``run_retries`` and the sensor ``heal_ohlcv`` see to the rest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import dagster as dg

# Not exported by dagster: what every launcher of its own is made of.
from dagster._core.launcher import (  # noqa: TID251
    CheckRunHealthResult,
    LaunchRunContext,
    WorkerStatus,
)
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import serialize_value

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.orchestration.workers import lives, process_of

if TYPE_CHECKING:
    from collections.abc import Mapping


class ForkingRunLauncher(dg.DefaultRunLauncher):
    """Forks runs off a warm process, knows of dead ones, and interrupts them by signal."""

    def __init__(self, inst_data: Any = None) -> None:
        super().__init__(inst_data=inst_data)
        self._nursery = _Nursery()

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Any:
        """As Dagster makes it from ``dagster.yaml``."""
        del config_value
        return cls(inst_data=inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start the run's process.

        Raises:
            LocalServiceError: no process can be started.
        """
        run = context.dagster_run
        if run.job_code_origin is None:
            raise LocalServiceError(
                f"Run {run.run_id} does not say which code it is of.",
                hint="launch it from the UI, a schedule or a sensor of this project.",
            )
        arguments = ExecuteRunArgs(
            job_origin=run.job_code_origin,
            run_id=run.run_id,
            instance_ref=self._instance.get_ref(),
        )
        process = self._nursery.fork(["api", "execute_run", serialize_value(arguments)])
        self._instance.report_engine_event(f"Launched as process {process}.", run)

    def terminate(self, run_id: str) -> bool:
        """Interrupt the run's process; it notes its end itself. False if it has none here."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        process = process_of(self._instance, run_id)
        if process is None:
            return False  # not begun, or gone: run monitoring ends it
        os.kill(process, signal.SIGINT)
        return True

    def dispose(self) -> None:
        """Let go of the nursery; runs go on."""
        self._nursery.close()

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """FAILED if the run's process is surely gone; RUNNING where that cannot be told.

        Run monitoring reads the run's status once more before it believes us, so a run that ends
        between two looks is not taken for dead.
        """
        if lives(self._instance, run.run_id) is False:
            return CheckRunHealthResult(
                WorkerStatus.FAILED, "its process ended without a word (killed, out of memory)"
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)


class _Nursery:
    """The warm process, started when it is first needed, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._asking = threading.Lock()

    def fork(self, arguments: list[str]) -> int:
        """A process of its own for Dagster's command line; its id."""
        request = json.dumps({"arguments": arguments}).encode() + b"\n"
        with self._asking:
            for _ in range(2):
                answer = self._ask(request)
                if answer:
                    return int(json.loads(answer)["pid"])
                self.close()
        raise LocalServiceError(
            "The process that runs are forked off does not start.",
            hint="see what it says in the daemon's log ($CRYPTO_PIPELINE_HOME/logs/dagster.log).",
            rerun_helps=True,
        )

    def _ask(self, request: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "crypto_pipeline.orchestration.nursery"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101
        with suppress(BrokenPipeError):
            self._process.stdin.write(request)
            return self._process.stdout.readline()
        return b""

    def close(self) -> None:
        """End it: its input ends."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
