"""The run launcher: Dagster's default one, and whether a run's process lives.

Chosen in ``dagster.yaml``. Run monitoring asks it at each interval about every run that has started,
and marks those failed whose process is gone; ``run_retries`` and the sensor ``heal_ohlcv`` see to
the rest. Code servers may come and go meanwhile: the answer does not rest on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dagster as dg

# Not exported by dagster: what run monitoring asks a launcher in.
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus  # noqa: TID251

from crypto_pipeline.orchestration.workers import lives

if TYPE_CHECKING:
    from collections.abc import Mapping


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Launches runs on the code server, and knows of dead ones."""

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Any:
        """As Dagster makes it from ``dagster.yaml``."""
        del config_value
        return cls(inst_data=inst_data)

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
