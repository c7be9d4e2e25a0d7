"""One simulator process for these tests, its clock frozen; each test starts from a clean one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.corridor.streams import NOW, SYMBOL

_CONFIG = SimulatorConfig.parse(
    {
        "clock": {"frozen_at": NOW},
        "exchanges": {"kraken": {"symbols": {SYMBOL: {"quiet_rate": 0.3}}, "history_limit": 720}},
    },
    origin="the tests",
)


@pytest.fixture(scope="session")
def kraken_process() -> Iterator[SimulatorHandle]:
    with running_simulator(_CONFIG) as handle:
        yield handle


@pytest.fixture
def simulator(kraken_process: SimulatorHandle) -> SimulatorHandle:
    kraken_process.control.reset()
    return kraken_process
