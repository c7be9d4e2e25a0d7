"""How large databases and long-lived processes are, over the time of a soak; whether they grow."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import psutil

from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline_tests.benchmarks.supervised import Supervised

EVERY_SECONDS = 15.0
#: A process is judged once it lived for so long; its first minutes, of warming up, do not count.
JUDGED_SECONDS = 900.0
WARM_SECONDS = 300.0
#: What a process may grow an hour: less would be noise over the times a soak takes.
MEMORY_MB_PER_HOUR = 100.0
FILES_PER_HOUR = 30.0

SIZES = "SELECT datname, pg_database_size(datname) FROM pg_database"
LONG_LIVED = (
    "up",
    "dagster dev",
    "daemon",
    "nursery",
    "webserver",
    "code server",
    "code server proxy",
)


class Samples:
    """Samples of one deployment, taken now and then."""

    def __init__(self, deployment: Supervised) -> None:
        self._deployment = deployment
        self._next = 0.0
        # By when it began, too: pids come again.
        self._processes: dict[tuple[str, int, float], list[tuple[float, float, int]]] = defaultdict(
            list
        )
        self._databases: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def take(self) -> None:
        """A sample, if it is time for one."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        for role, processes in self._deployment.by_role().items():
            for process in processes if role in LONG_LIVED else ():
                try:
                    files, memory = process.num_fds(), process.memory_info().rss / 1e6
                    began = process.create_time()
                except psutil.Error:
                    continue
                self._processes[role, process.pid, began].append((now, memory, files))
        try:
            for name, size in self._deployment.rows(SIZES):
                self._databases[name].append((now, size / 1e6))
        except CryptoPipelineError:
            return

    def figures(self) -> dict[str, Any]:
        """By role, of the process that lived longest; ``grows`` names what grew more than it may."""
        longest: dict[str, list[tuple[float, float, int]]] = {}
        for (role, *_), samples in self._processes.items():
            if _length(samples) > _length(longest.get(role, samples[:1])):
                longest[role] = samples
        processes, grows = {}, []
        for role, samples in sorted(longest.items()):
            warm = [s for s in samples if s[0] >= samples[0][0] + WARM_SECONDS] or samples[-2:]
            memory = _slope([(at, megabytes) for at, megabytes, _ in warm])
            files = _slope([(at, float(count)) for at, _, count in warm])
            processes[role] = {
                "minutes": round(_length(samples) / 60, 1),
                "MB": [round(samples[0][1]), round(samples[-1][1])],
                "MB an hour": round(memory, 1),
                "files": [samples[0][2], samples[-1][2]],
                "files an hour": round(files, 1),
            }
            if _length(samples) >= JUDGED_SECONDS:
                grows += [f"{role}: memory"] * (memory > MEMORY_MB_PER_HOUR)
                grows += [f"{role}: files"] * (files > FILES_PER_HOUR)
        databases = {
            name: {
                "MB": [round(sizes[0][1], 1), round(sizes[-1][1], 1)],
                "MB an hour": round(_slope(sizes[len(sizes) // 4 :]), 1),
            }
            for name, sizes in self._databases.items()
            if name in ("crypto_pipeline", "dagster")
        }
        return {"processes": processes, "databases": databases, "grows": grows}


def _length(samples: list[Any]) -> float:
    return float(samples[-1][0] - samples[0][0])


def _slope(points: list[tuple[float, float]]) -> float:
    """An hour, by least squares."""
    if len(points) < 3:
        return 0.0
    at, value = np.array(points).T
    return float(np.polyfit(at - at[0], value, 1)[0] * 3_600)
