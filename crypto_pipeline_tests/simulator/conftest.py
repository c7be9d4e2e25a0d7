"""One simulator process for all tests, its clock frozen; each test starts from a clean one."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator

NOW_MS = 1_710_506_096_789  # 2024-03-15 12:34:56.789 UTC
MINUTE = NOW_MS // MINUTE_MS * MINUTE_MS  # the forming minute
SHARED = Path(__file__).parents[2].parent / "shared" / "data"

OUTAGE = (MINUTE - 90 * MINUTE_MS, MINUTE - 80 * MINUTE_MS)
CONFIG = SimulatorConfig.parse(
    {
        "clock": {"frozen_at": NOW_MS},
        "exchanges": {
            "binance": {
                "symbols": {"BTC/USDT": {}, "ETH/BTC": {"quiet_rate": 0.5}},
                "outages": [OUTAGE],
                "port": 0,
            },
            "binanceus": {"symbols": ["BTC/USD"]},
            "kraken": {
                "symbols": {
                    "BTC/USD": {"quiet_rate": 0.3},
                    "BTC/USDC": {},
                    "DOGE/USD": {},
                    "LTC/EUR": {"delisted": "2024-01-01"},
                }
            },
            "coinbaseexchange": {"symbols": {"BTC/USD": {"quiet_rate": 0.3}}},
        },
    },
    origin="the tests",
)

Call = Callable[[Any], Awaitable[Any]]


@pytest.fixture(scope="session")
def process() -> Iterator[SimulatorHandle]:
    with running_simulator(CONFIG) as handle:
        yield handle


@pytest.fixture
def simulator(process: SimulatorHandle) -> SimulatorHandle:
    process.control.reset()
    return process


@pytest.fixture
def ask(simulator: SimulatorHandle) -> Callable[[str, Call], Any]:
    """Run a coroutine function on a genuine ccxt instance of an exchange."""
    return lambda key, call: ask_exchange(simulator, key, call)


def ask_exchange(simulator: SimulatorHandle, key: str, call: Call, **settings: Any) -> Any:
    async def run() -> Any:
        exchange = getattr(ccxt, key)(simulator.ccxt_config(key) | settings)
        exchange.timeout_on_exit = 0
        try:
            return await call(exchange)
        finally:
            await exchange.close()

    return asyncio.run(run())


def rows_of(simulator: SimulatorHandle, key: str, symbol: str, *window: Any) -> list[list[float]]:
    """The truth as ccxt's rows."""
    return simulator.truth.candles(key, symbol, *window).to_numpy().tolist()
