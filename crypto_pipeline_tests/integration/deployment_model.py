"""A deployment without Dagster: its stages called one after the other, with crashes between writes.

Everything else is real: genuine ccxt over sockets, the lake on disk, the database. What decides
when to run (days of a tick, the sensor's due days) is the code Dagster calls.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.corridor.collect import Collection
from crypto_pipeline.corridor.completeness import filled
from crypto_pipeline.database.candle_writer import replace_live_candles, upsert_candles
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.orchestration import healing, ledger
from crypto_pipeline.orchestration.assets import _resting
from crypto_pipeline.orchestration.ledger import LedgerResource, StoredRuns
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import (
    CcxtResource,
    ClockResource,
    DatabaseResource,
    LakeResource,
)
from crypto_pipeline.orchestration.schedules import _days
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, HEALS_TAG
from crypto_pipeline.simulator import SimulatorHandle

TABLES = "candles, candle_hours, live_candles, rejected_candles, candle_gaps, candle_partitions, exchange_states, request_budgets, exchange_markets"


class Crash(BaseException):
    """The process is gone: nothing after the write before it happened."""


@dataclass
class Deployment:
    """One deployment over a simulator, its time frozen where a test puts it."""

    simulator: SimulatorHandle
    config: PipelineConfig
    database_url: str
    home: Path
    now: int
    writes_left: int | None = None

    def __post_init__(self) -> None:
        self.database = DatabaseResource(lambda: self.database_url)
        self.lake = LakeResource(str(self.home / "lake"))
        clock = ClockResource(lambda: utc(self.now))
        self.ccxt = CcxtResource(self.config, lambda: self.database_url, clock=lambda: self.now)
        self.ledger = LedgerResource(self.config, self.lake, self.database, clock)
        with self.database.connect() as conn:
            conn.execute(f"TRUNCATE {TABLES}")
        shutil.rmtree(self.home / "lake", ignore_errors=True)
        self.at(self.now)

    def at(self, now: int) -> None:
        """Let the time be this."""
        self.now = now
        self.simulator.control.set_clock(frozen_at=now)

    # Runs

    def tick(self) -> None:
        """The minute schedule, for every exchange."""
        for exchange in self.config.exchanges:
            for day in _days(self.config, exchange, utc(self.now)):
                self.run(exchange, [day], scheduled=True)

    def heal(self) -> None:
        """The sensor, for every exchange."""
        for exchange in self.config.exchanges:
            with self.database.connect() as conn:
                due = healing._due(conn, self.config, exchange, utc(self.now))
            if due:
                request = healing._request(self.config, exchange, due, utc(self.now))
                count = 1
                if request.partition_key is None:
                    count = 1 + sum(
                        due[-1 - n] - due[-2 - n] == timedelta(days=1) for n in range(len(due) - 1)
                    )
                self.run(exchange, due[-count:], healing=True)

    def run(
        self,
        exchange: str,
        days: Sequence[date],
        *,
        scheduled: bool = False,
        healing: bool = False,
    ) -> None:
        """What a Dagster run of these partitions does; a crash or an error ends it."""
        tags = {EXCHANGE_TAG: exchange} if scheduled else {HEALS_TAG: exchange} if healing else {}
        with self._crashing():
            try:
                asyncio.run(self._collect(exchange, days, tags))
            except CryptoPipelineError:
                partitions = [Partition(exchange, day) for day in days]
                self.ledger.record_failed(partitions, live=scheduled)
                return
            for day in days:
                self._store(Partition(exchange, day), live=scheduled)

    async def _collect(self, exchange: str, days: Sequence[date], tags: Mapping[str, str]) -> None:
        async with self.ccxt.open(exchange, live=EXCHANGE_TAG in tags) as wrapper:
            wrapper._ccxt.timeout_on_exit = 0  # for TLS to end in order; there is none here
            with self.database.raw_locks() as lock:
                await Collection(
                    exchange=wrapper,
                    zone=self.lake.raw(lock),
                    days=days,
                    run_id="test",
                    reread=self.config.live.reread,
                    resting=_resting(tags, self.ccxt, exchange, self.database),
                ).run()

    def _store(self, partition: Partition, *, live: bool) -> None:
        raw = self.lake.raw().read(*partition)
        verdict = validate(raw.observations, day=partition.day)
        start = day_start_ms(partition.day)
        with self.database.connect() as conn:
            record_rejected(
                conn,
                verdict.rejected,
                exchange=partition.exchange,
                partition_date=partition.day,
            )
            self.lake.validated().write(*partition, verdict.candles)
            candles = self.lake.validated().read(*partition)
            assert candles is not None
            final = candles[candles["final"]]
            self._write()
            upsert_candles(
                conn,
                final,
                exchange=partition.exchange,
                start=utc(start),
                end=utc(start + DAY_MS),
            )
            self._write()
            replace_live_candles(conn, candles[~candles["final"]], exchange=partition.exchange)
            self.ledger.record(conn, {partition: StoredRuns(filled(final))}, live=live)

    # Crashes

    def _write(self) -> None:
        if self.writes_left is None:
            return
        if self.writes_left == 0:
            self.writes_left = None
            raise Crash
        self.writes_left -= 1

    @contextmanager
    def _crashing(self) -> Iterator[None]:
        """Count writes, and let none happen after the last one."""
        lake_write, record = LakeStorage.write, ledger.record_partitions

        def counted_lake(storage: LakeStorage, name: str, content: bytes, **how: Any) -> None:
            self._write()
            lake_write(storage, name, content, **how)

        def counted_ledger(*args: Any, **named: Any) -> None:
            self._write()
            record(*args, **named)

        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(LakeStorage, "write", counted_lake))
            stack.enter_context(mock.patch.object(ledger, "record_partitions", counted_ledger))
            try:
                yield
            except Crash:
                pass
            except BaseExceptionGroup as group:
                if group.split(Crash)[0] is None:
                    raise
            finally:
                self.writes_left = None

    # What there is, and what there should be

    def candles(self) -> pd.DataFrame:
        """Stored candles: exchange, symbol, timeframe, open_time (ms), values; in key order."""
        with self.database.connect() as conn:
            rows = conn.execute(
                "SELECT exchange, symbol, timeframe, (extract(epoch FROM open_time) * 1000)::bigint,"
                " open, high, low, close, volume FROM candles ORDER BY 1, 2, 3, 4"
            ).fetchall()
        names = ["exchange", "symbol", "timeframe", "open_time"]
        names += ["open", "high", "low", "close", "volume"]
        frame = pd.DataFrame(rows, columns=names)
        return frame.astype(dict.fromkeys(names[4:], "float64"))

    def truth(self, until: int) -> pd.DataFrame:
        """What the exchanges truly had from their first day up to an instant."""
        frames = []
        for exchange, config in sorted(self.config.exchanges.items()):
            for symbol in sorted(config.symbols):
                for timeframe in sorted(config.timeframes):
                    frame = self.simulator.truth.candles(
                        exchange, symbol, timeframe, day_start_ms(config.start), until
                    )
                    frames.append(
                        frame.assign(exchange=exchange, symbol=symbol, timeframe=timeframe)
                    )
        both = pd.concat(frames, ignore_index=True)
        return both[["exchange", "symbol", "timeframe", *both.columns[:6]]]

    def states(self) -> dict[date, bool]:
        """Whether each partition that was looked at is complete."""
        with self.database.connect() as conn:
            return dict(
                conn.execute(
                    "SELECT partition_date, complete FROM candle_partitions ORDER BY 1"
                ).fetchall()
            )

    def gaps(self) -> list[tuple[str, str, int, int, str]]:
        """The ledger: exchange, symbol, start and end in ms, cause."""
        with self.database.connect() as conn:
            return [
                (exchange, symbol, int(start), int(end), cause)
                for exchange, symbol, start, end, cause in conn.execute(
                    "SELECT exchange, symbol, extract(epoch FROM gap_start) * 1000,"
                    " extract(epoch FROM gap_end) * 1000, cause FROM candle_gaps ORDER BY 1, 2, 3"
                ).fetchall()
            ]


def loaded(document: Mapping[str, Any]) -> PipelineConfig:
    """A configuration from plain data."""
    return PipelineConfig.model_validate(document)
