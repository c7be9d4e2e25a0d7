"""A local HTTP server that speaks the exchanges' wire formats, for demo, tests and benchmarks.

Genuine ccxt classes talk to it over real sockets::

    config = SimulatorConfig.for_pipeline({"kraken": ("kraken", ["BTC/USD"])})
    with running_simulator(config) as simulator:
        exchange = ccxt.async_support.kraken(simulator.ccxt_config("kraken"))
        simulator.control.add_fault(act="status", status=503, exchange="kraken", nth=2)
        expected = simulator.truth.candles("kraken", "BTC/USD", "1m", start_ms, end_ms)

What it serves is a function of the configuration alone (`truth`); what goes wrong is set through
`SimulatorControl`. No test of this project needs an exchange, and no fault is a mock.
"""

from __future__ import annotations

from crypto_pipeline.simulator.client import SimulatorControl
from crypto_pipeline.simulator.config import (
    BudgetConfig,
    ClockConfig,
    ExchangeConfig,
    SimulatorConfig,
    SymbolConfig,
)
from crypto_pipeline.simulator.faults import Fault
from crypto_pipeline.simulator.process import SimulatorHandle, running_simulator, serve
from crypto_pipeline.simulator.server import Simulator
from crypto_pipeline.simulator.truth import Truth
from crypto_pipeline.simulator.urls import ccxt_urls

__all__ = [
    "BudgetConfig",
    "ClockConfig",
    "ExchangeConfig",
    "Fault",
    "Simulator",
    "SimulatorConfig",
    "SimulatorControl",
    "SimulatorHandle",
    "SymbolConfig",
    "Truth",
    "ccxt_urls",
    "running_simulator",
    "serve",
]
