"""One simulator process for all of these tests, its clock frozen; each test starts from a clean one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import pytest

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator

NOW = 1_710_506_096_789  # 2024-03-15 12:34:56.789 UTC
FORMING = NOW // MINUTE_MS * MINUTE_MS
WINDOW = Interval(FORMING - 30 * MINUTE_MS, FORMING - 10 * MINUTE_MS)
SYMBOLS = {"binance": "BTC/USDT", "kraken": "BTC/USD", "coinbaseexchange": "BTC/USD"}
KEYS = tuple(SYMBOLS)
ATTEMPTS = 3

_CONFIG = SimulatorConfig.parse(
    {
        "clock": {"frozen_at": NOW},
        "exchanges": {
            "binance": {"symbols": ["BTC/USDT", "ETH/USDT"], "port": 0},
            "kraken": {"symbols": ["BTC/USD", "ETH/USD"], "port": 0},
            "coinbaseexchange": {"symbols": ["BTC/USD", "ETH/USD"], "port": 0},
        },
    },
    origin="the tests",
)


@dataclass(frozen=True)
class Asker:
    """Asks the simulator's exchanges through our wrapper and genuine ccxt."""

    simulator: SimulatorHandle

    def config(self, key: str, *, ccxt: dict[str, Any] | None = None, **fields: Any) -> Any:
        return ExchangeConfig.model_validate(
            {
                "ccxt_id": key,
                "symbols": [SYMBOLS[key]],
                "start": date(2024, 3, 1),
                "ccxt": {**self.simulator.ccxt_config(key), **(ccxt or {})},
                "retry": {
                    "attempts": ATTEMPTS,
                    "first_wait_seconds": 0.001,
                    "longest_wait_seconds": 0.002,
                },
                "timeout_seconds": 5,
                **fields,
            }
        )

    def wrapper(self, key: str, *, secrets: tuple[str, ...] = (), **fields: Any) -> ExchangeWrapper:
        made = ExchangeWrapper(
            key=key, config=self.config(key, **fields), secrets=secrets, clock=lambda: NOW
        )
        made._ccxt.timeout_on_exit = 0  # for TLS to end in order; there is none here
        return made

    def run(
        self, key: str, call: Callable[[ExchangeWrapper], Awaitable[Any]], **fields: Any
    ) -> Any:
        async def inside() -> Any:
            async with self.wrapper(key, **fields) as wrapper:
                return await call(wrapper)

        return asyncio.run(inside())

    def fetch(
        self,
        key: str,
        *,
        window: Interval = WINDOW,
        symbol: str | None = None,
        timeframe: str = "1m",
        **fields: Any,
    ) -> Answer:
        """Load the markets, then ask for one window."""
        series = Series(symbol or SYMBOLS[key], timeframe)

        async def call(wrapper: ExchangeWrapper) -> Answer:
            await wrapper.load_markets()
            return await wrapper.fetch(series, window)

        return self.run(key, call, **fields)

    def asked(self, key: str) -> list[dict[str, Any]]:
        """The requests for candles that arrived, oldest first."""
        return self.simulator.control.arrivals(exchange=key, endpoint="candles")


@pytest.fixture(scope="session")
def exchanges_process() -> Iterator[SimulatorHandle]:
    with running_simulator(_CONFIG) as handle:
        yield handle


@pytest.fixture
def simulator(exchanges_process: SimulatorHandle) -> SimulatorHandle:
    exchanges_process.control.reset()
    return exchanges_process


@pytest.fixture
def asker(simulator: SimulatorHandle) -> Asker:
    return Asker(simulator)
