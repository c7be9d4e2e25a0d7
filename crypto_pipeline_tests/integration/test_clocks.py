"""Clocks that disagree: whose minute is over is the exchange's to say, not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crypto_pipeline.core.candles import VALUES
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.corridor.collect import Collection
from crypto_pipeline.database.candle_writer import upsert_candles
from crypto_pipeline.database.locks import raw_partition_lock
from crypto_pipeline.exchanges.clock import ExchangeClock
from crypto_pipeline.exchanges.exchanged import Exchanged
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.integration.deployment_model import Deployment, loaded

DAY = date(2024, 3, 15)
START = day_start_ms(DAY)
SYMBOLS = {"binance": "BTC/USDT", "kraken": "BTC/USD", "coinbaseexchange": "BTC/USD"}
#: Shortly before, or each answer of Kraken's would hold half a day.
LISTED = {"listed": START - 5 * MINUTE_MS}
REREAD = 3
#: Closed for so long by the exchange's clock, a candle is stored: two seconds in which it may still
#: change, and one by which a Date header may be behind.
LATEST_MS = 3_000
#: 14 borders × 12 instants around each; with three exchanges and two offsets 1,008 ticks. The
#: instants differ in their milliseconds, since a Date header knows none.
TICKS = [
    START + minute * MINUTE_MS + after + 97 * minute % 1_000
    for minute in range(1, 15)
    for after in range(-6_000, 6_000, 1_000)
]


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    config = SimulatorConfig.parse(
        {
            "clock": {"frozen_at": START},
            "exchanges": {
                key: {"symbols": {symbol: LISTED}, "quiet_rate": 0.1}
                for key, symbol in SYMBOLS.items()
            },
        },
        origin="the test",
    )
    with running_simulator(config) as simulator:
        yield simulator


@pytest.fixture
def deployment(
    exchanges: SimulatorHandle, new_database: Callable[[], str], tmp_path: Path
) -> Callable[[str], Deployment]:
    def make(exchange: str) -> Deployment:
        exchanges.control.reset()
        document = {
            "exchanges": {
                exchange: {
                    "symbols": [SYMBOLS[exchange]],
                    "start": DAY,
                    "ccxt": {**exchanges.ccxt_config(exchange), "enableRateLimit": False},
                    "retry": {"attempts": 1},
                }
            },
            "live": {"reread": REREAD},
        }
        return Deployment(exchanges, loaded(document), new_database(), tmp_path, START)

    return make


class RememberedZone(RawZone):
    """The raw zone, whose partition is read once: nobody else writes it."""

    known: RawPartition | None = None

    def read(self, exchange: str, day: date) -> RawPartition:
        return self.known or super().read(exchange, day)

    def update(self, *args: Any, **named: Any) -> RawPartition:
        self.known = super().update(*args, **named)
        return self.known


@dataclass
class Ticks:
    """The minute schedule's work on one exchange, with ccxt and connections kept between ticks."""

    deployment: Deployment
    exchange: str
    offset_ms: int

    def __post_init__(self) -> None:
        self.deployment.simulator.control.set_clock_offset(self.exchange, self.offset_ms / 1_000)
        truth = self.deployment.truth(TICKS[-1] + 10 * MINUTE_MS)
        columns = [truth[name].tolist() for name in ("open_time", *VALUES)]
        self.truth = {time: values for time, *values in zip(*columns, strict=True)}

    def run(self, instants: Sequence[int], clock: ExchangeClock | None = None) -> Iterator[str]:
        """What was wrong after each tick; ``clock`` replaces the wrapper's own."""
        with asyncio.Runner() as loop, self.deployment.database.connect() as conn:
            wrapper = self.deployment.ccxt.open(self.exchange, live=True)
            wrapper._asker.clock = clock or wrapper.exchange_clock
            storage = LakeStorage(self.deployment.lake.url)
            zone = RememberedZone(storage, partial(raw_partition_lock, conn))
            for now in instants:
                self.deployment.at(now)
                loop.run(self._tick(wrapper, zone, conn))
                yield from self._wrong(conn, now + self.offset_ms)
            loop.run(wrapper.__aexit__(None, None, None))

    async def _tick(
        self, wrapper: ExchangeWrapper, zone: RawZone, conn: psycopg.Connection
    ) -> None:
        await Collection(
            exchange=wrapper, zone=zone, days=[DAY], run_id="test", reread=REREAD
        ).run()
        candles = validate(zone.read(self.exchange, DAY).observations, day=DAY).candles
        upsert_candles(
            conn,
            candles[candles["final"]],
            exchange=self.exchange,
            start=utc(START),
            end=utc(START + DAY_MS),
        )

    def _wrong(self, conn: psycopg.Connection, exchange_now: int) -> Iterator[str]:
        rows = conn.execute(
            "SELECT (extract(epoch FROM open_time) * 1000)::bigint, open, high, low, close, volume"
            " FROM candles"
        ).fetchall()
        stored = {time: [float(value) for value in values] for time, *values in rows}
        for time, values in stored.items():
            if time + MINUTE_MS > exchange_now or values != self.truth.get(time):
                yield f"{utc(exchange_now)}: {utc(time)} is {values}, not {self.truth.get(time)}"
        for time in self.truth:
            if time + MINUTE_MS + LATEST_MS <= exchange_now and time not in stored:
                yield f"{utc(exchange_now)}: {utc(time)} is not stored"


class ClockIgnored(ExchangeClock):
    """Trusts that the exchange's clock is ours."""

    def observe(self, exchanged: Exchanged) -> None:
        del exchanged


@pytest.mark.parametrize("offset_ms", [-5_000, 5_000])
@pytest.mark.parametrize("exchange", SYMBOLS)
def test_no_forming_candle_is_ever_stored(
    deployment: Callable[[str], Deployment], exchange: str, offset_ms: int
) -> None:
    """Facts: with the exchange 4 s behind, our clock took a forming candle for final.

    After every tick the table holds what is closed by the exchange's clock, all of it that has
    been for three seconds, and each value is the final one.
    """
    ticks = Ticks(deployment(exchange), exchange, offset_ms)
    assert list(ticks.run(TICKS)) == []


@pytest.mark.parametrize("exchange", SYMBOLS)
def test_by_our_own_clock_forming_candles_would_be_stored(
    deployment: Callable[[str], Deployment], exchange: str
) -> None:
    """The same ticks can fail: two seconds after our border the exchange's minute still goes on."""
    ticks = Ticks(deployment(exchange), exchange, -5_000)
    wrong = list(ticks.run(TICKS[:36], ClockIgnored()))
    assert wrong
    assert not [text for text in wrong if "not stored" in text]
