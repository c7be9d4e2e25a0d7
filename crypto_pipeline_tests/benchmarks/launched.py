"""One range run, launched as the daemon launches those of a backfill: by the instance's run launcher.

``python -m crypto_pipeline_tests.benchmarks.launched EXCHANGE START END``; its last line says what the
run took, as JSON: seconds from the moment it is created until it has ended, CPU and most memory of its
process. The launcher's warm process is there before, as in a deployment.
"""

from __future__ import annotations

import json
import sys
import time

import dagster as dg
from dagster._core.launcher import LaunchRunContext

from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.launcher import ForkingRunLauncher
from crypto_pipeline.orchestration.tags import RANGE_END, RANGE_START
from crypto_pipeline_tests.benchmarks.peak import Peak


def job() -> dg.JobDefinition:
    """What the run's process finds under this name."""
    from crypto_pipeline.definitions import defs

    return defs.resolve_job_def(OHLCV_JOB)


def main() -> None:
    """Run it."""
    import psutil  # the run's process imports this module, too, and no deployment's run would this

    exchange, start, end = sys.argv[1:]
    recon = dg.reconstructable(job)
    with dg.DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, ForkingRunLauncher)
        launcher._nursery.fork(["--version"])
        nursery = psutil.Process(launcher._nursery._process.pid)
        time.sleep(1)
        before = nursery.cpu_times()
        began = time.perf_counter()
        run = instance.create_run_for_job(
            job(),
            job_code_origin=recon.get_python_origin(),
            tags={RANGE_START: f"{start}|{exchange}", RANGE_END: f"{end}|{exchange}"},
        )
        launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        peak = Peak(nursery.children()[0].pid)
        while not (found := instance.get_run_by_id(run.run_id)) or not found.is_finished:
            time.sleep(0.02)
        wall = time.perf_counter() - began
        assert found.is_success, found.status
        while nursery.children():
            time.sleep(0.05)
        after = nursery.cpu_times()
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        sys.stdout.write(json.dumps({"wall": wall, "cpu": cpu, "peak_mb": peak.megabytes}) + "\n")


if __name__ == "__main__":
    main()
