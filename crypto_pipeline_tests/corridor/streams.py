"""Streams of trades to candles, held against the simulator's truth."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES, concat, empty_observations
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS
from crypto_pipeline.corridor.trade_history import TradeCandles, trade_candles
from crypto_pipeline.errors import ExchangeError
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.simulator import SimulatorHandle

NOW = 1_710_506_096_789  # 2024-03-15 12:34:56.789 UTC
TODAY = NOW // DAY_MS * DAY_MS
SYMBOL = "BTC/USD"


def wrapper(simulator: SimulatorHandle, *, attempts: int = 1) -> ExchangeWrapper:
    config = ExchangeConfig.model_validate(
        {
            "ccxt_id": "kraken",
            "symbols": [SYMBOL],
            "start": date(2024, 1, 1),
            "ccxt": simulator.ccxt_config("kraken"),
            "retry": {"attempts": attempts, "first_wait_seconds": 0, "longest_wait_seconds": 0.001},
            "timeout_seconds": 5,
        }
    )
    made = ExchangeWrapper(key="kraken", config=config, clock=lambda: NOW)
    made._ccxt.timeout_on_exit = 0
    return made


async def streamed(
    exchange: ExchangeWrapper, spans: dict[str, Interval], *, most: int = 10**9, **named: Any
) -> tuple[list[TradeCandles], ExchangeError | None]:
    """The batches (the consumer stops after ``most`` of them), and how the stream failed."""
    batches: list[TradeCandles] = []
    try:
        async for batch in trade_candles(exchange, SYMBOL, spans, run_id="run-7", **named):
            batches.append(batch)
            if len(batches) >= most:
                break
    except ExchangeError as error:
        return batches, error
    return batches, None


def stream(
    simulator: SimulatorHandle, spans: dict[str, Interval], *, attempts: int = 1, **named: Any
) -> tuple[list[TradeCandles], ExchangeError | None]:
    async def run() -> tuple[list[TradeCandles], ExchangeError | None]:
        async with wrapper(simulator, attempts=attempts) as exchange:
            await exchange.load_markets()
            return await streamed(exchange, spans, **named)

    return asyncio.run(run())


def frame_of(batches: list[TradeCandles]) -> pd.DataFrame:
    frames = [batch.observations for batch in batches]
    return concat([empty_observations(), *frames], OBSERVATION_DTYPES)


def assert_true(
    simulator: SimulatorHandle, frame: pd.DataFrame, timeframe: str, span: Interval
) -> None:
    """Every candle of the span that had trades, to 1e-9 relative, and no other."""
    made = frame[frame["timeframe"] == timeframe]
    truth = simulator.truth.candles("kraken", SYMBOL, timeframe, *span)
    truth = truth[truth["volume"] > 0]
    assert times_ms(made["open_time"]).tolist() == truth["open_time"].tolist()
    for name in VALUES:
        np.testing.assert_allclose(made[name], truth[name], rtol=1e-9, atol=0)


def arrived(simulator: SimulatorHandle) -> list[dict[str, Any]]:
    return simulator.control.arrivals(exchange="kraken", endpoint="trades")
