"""Resources: exchanges through ccxt, the lake, the database, the clock.

They hold addresses and settings, never an open connection: definitions are built in every process,
and most never talk to anything. What depends on ``pipeline.yaml`` comes from it, not from run
configuration, so nothing secret reaches the run's page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

import psycopg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.timeframes import to_ms
from crypto_pipeline.database.budget import SharedBudget
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.exchange_states import back_at
from crypto_pipeline.database.locks import claimed_partitions, raw_partition_lock
from crypto_pipeline.database.market_cache import StoredMarkets
from crypto_pipeline.exchanges.asking import Clock, system_clock
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import PartitionLock, RawZone, ValidatedZone


@dataclass(frozen=True)
class CcxtResource:
    """Opens configured exchanges.

    ``secrets``: values no message may show; ``database_url``: where the request budgets and the
    markets are that all runs share.
    """

    config: PipelineConfig = field(repr=False)
    database_url: Callable[[], str] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    clock: Clock = system_clock

    def open(self, exchange: str, *, live: bool) -> ExchangeWrapper:
        """An exchange by its key in ``pipeline.yaml``; an async context manager.

        ``live``: for the minute schedule, whose requests go before any others.
        """
        config = self.config.exchanges[exchange]
        pacer = None
        if config.paced:
            pacer = SharedBudget(
                self.database_url(),
                name=config.budget_name,
                share=config.budget.share,
                live=live,
            )
        return ExchangeWrapper(
            key=exchange,
            config=config,
            secrets=self.secrets,
            clock=self.clock,
            pacer=pacer,
            markets=StoredMarkets(self.database_url, exchange),
        )


@dataclass(frozen=True)
class LakeResource:
    """The Parquet archive at a folder or fsspec URL."""

    url: str = field(repr=False)

    def raw(self, lock: PartitionLock | None = None) -> RawZone:
        """The raw zone. Without a lock it is for reading only."""
        return RawZone(LakeStorage(self.url), lock or _reading_only)

    def validated(self) -> ValidatedZone:
        """The validated zone."""
        return ValidatedZone(LakeStorage(self.url))


def _reading_only(exchange: str, day: date) -> AbstractContextManager[None]:
    raise RuntimeError(f"the raw zone of {exchange} {day} was opened for reading only")


@dataclass(frozen=True)
class DatabaseResource:
    """The candle database. ``url`` is asked for when a connection is opened, not before."""

    url: Callable[[], str] = field(repr=False)

    def connect(self) -> AbstractContextManager[psycopg.Connection]:
        """An open autocommit connection.

        Raises:
            ConfigError: no database is configured.
            DatabaseError: it is away.
        """
        return connect(self.url())

    @contextmanager
    def claimed(
        self, exchange: str, days: Sequence[date], *, waiting: Callable[[date], None]
    ) -> Iterator[None]:
        """Alone in collecting these partitions, but for the minute schedule.

        ``waiting`` is told once of the day another run is busy with.
        """
        with self.connect() as conn, claimed_partitions(conn, exchange, days, waiting=waiting):
            yield

    def back_at(self, exchange: str) -> int:
        """Since when the exchange answers again, ms; 0 if it never did.

        Raises:
            DatabaseError: it is away.
        """
        with self.connect() as conn:
            return back_at(conn, exchange=exchange) or 0

    @contextmanager
    def raw_locks(
        self,
    ) -> Iterator[Callable[[str, date], AbstractContextManager[Callable[[], None]]]]:
        """Partition locks for the raw zone, shared by every process of the deployment."""
        with self.connect() as conn:
            yield lambda exchange, day: raw_partition_lock(conn, exchange, day)


@dataclass(frozen=True)
class ClockResource:
    """What time it is: ours, injected, so that no asset reads the wall clock."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    @property
    def now_ms(self) -> int:
        """Unix time in ms."""
        return to_ms(self.now())
