"""The two zones of the archive: raw (what exchanges answered) and validated (candles).

One partition is one file, ``<zone>/exchange=<key>/date=<day>/candles.parquet``, which any reader of
hive-partitioned Parquet understands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Final

import pandas as pd

from crypto_pipeline.core.candles import CANDLE_DTYPES, OBSERVATION_DTYPES, empty_observations
from crypto_pipeline.core.coverage import Coverage
from crypto_pipeline.errors import LakeError
from crypto_pipeline.lake.parquet import from_parquet, read_notes, to_parquet
from crypto_pipeline.lake.storage import LakeStorage, LastCheck

_COVERAGE: Final = "crypto_pipeline.coverage"

_SLOT_DTYPES: Final = {
    name: CANDLE_DTYPES[name] for name in ("symbol", "timeframe", "open_time", "final")
}

#: Held while a partition's raw file is read, merged and replaced, so that runs meeting on it lose
#: nothing of each other. Given by the caller: the lake itself has no locks. It may give a last check,
#: which raises if the lock was lost meanwhile (the database that held it restarted).
PartitionLock = Callable[[str, date], AbstractContextManager[LastCheck | None]]


@dataclass(frozen=True)
class RawPartition:
    """Everything the lake knows of an exchange's day: observations, and what was asked.

    ``version``: of the file it was written to, if that was asked for; see :meth:`RawZone.version`.
    """

    observations: pd.DataFrame = field(default_factory=empty_observations)
    coverage: Coverage = field(default_factory=Coverage)
    version: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RawSummary:
    """What a raw partition's footer says."""

    observations: int = 0
    coverage: Coverage = field(default_factory=Coverage)


class RawZone:
    """What exchanges answered, merged and never thrown away."""

    def __init__(self, storage: LakeStorage, lock: PartitionLock) -> None:
        self._storage = storage
        self._lock = lock

    def read(self, exchange: str, day: date) -> RawPartition:
        """The partition as it stands; an empty one if nothing was ever asked.

        Raises:
            LakeError: the file cannot be read.
        """
        name = _name("raw", exchange, day)
        content = self._storage.read(name)
        if content is None:
            return RawPartition()
        where = self._storage.where(name)
        frame, notes = from_parquet(content, OBSERVATION_DTYPES, where=where)
        return RawPartition(frame, _coverage(notes, where=where))

    def summary(self, exchange: str, day: date) -> RawSummary:
        """How many observations the partition holds and what was asked for, without reading them.

        Raises:
            LakeError: the file cannot be read.
        """
        name = _name("raw", exchange, day)
        content = self._storage.read(name)
        if content is None:
            return RawSummary()
        where = self._storage.where(name)
        rows, notes = read_notes(content, where=where)
        return RawSummary(rows, _coverage(notes, where=where))

    def version(self, exchange: str, day: date) -> str | None:
        """What changes whenever the partition does; None if it cannot be told."""
        return self._storage.version(_name("raw", exchange, day))

    def update(
        self,
        exchange: str,
        day: date,
        change: Callable[[RawPartition], RawPartition],
        *,
        versioned: bool = False,
    ) -> RawPartition:
        """Replace the partition by a function of itself, as one step that others wait for.

        ``versioned``: tell its new version, which is one more request to an object store.

        Raises:
            LakeError: the file cannot be read or written; it stands as it was.
        """
        with self._lock(exchange, day) as still_ours:
            partition = change(self.read(exchange, day))
            self._storage.write(
                _name("raw", exchange, day),
                to_parquet(
                    partition.observations,
                    OBSERVATION_DTYPES,
                    {_COVERAGE: partition.coverage.to_json()},
                ),
                last_check=still_ours or _nothing,
            )
            version = self.version(exchange, day) if versioned else None
        return replace(partition, version=version)

    def where(self, exchange: str, day: date) -> str:
        """The partition's file."""
        return self._storage.where(_name("raw", exchange, day))


class ValidatedZone:
    """The conforming candles of each partition, replaced as a whole."""

    def __init__(self, storage: LakeStorage) -> None:
        self._storage = storage

    def read(self, exchange: str, day: date) -> pd.DataFrame | None:
        """The partition's candles (columns of ``CANDLE_DTYPES``); None if never validated.

        Raises:
            LakeError: the file cannot be read.
        """
        name = _name("validated", exchange, day)
        content = self._storage.read(name)
        if content is None:
            return None
        return from_parquet(content, CANDLE_DTYPES, where=self._storage.where(name))[0]

    def read_slots(self, exchange: str, day: date) -> pd.DataFrame | None:
        """As :meth:`read`, without the candles' values: symbol, timeframe, open_time, final."""
        name = _name("validated", exchange, day)
        content = self._storage.read(name)
        if content is None:
            return None
        return from_parquet(content, _SLOT_DTYPES, where=self._storage.where(name))[0]

    def write(
        self,
        exchange: str,
        day: date,
        candles: pd.DataFrame,
        *,
        last_check: LastCheck | None = None,
    ) -> None:
        """Replace the partition's candles; ``last_check`` is called just before.

        Raises:
            LakeError: the file cannot be written; it stands as it was.
        """
        name = _name("validated", exchange, day)
        self._storage.write(
            name, to_parquet(candles, CANDLE_DTYPES, {}), last_check=last_check or _nothing
        )

    def version(self, exchange: str, day: date) -> str | None:
        """What changes whenever the partition's file does; None if it cannot be told."""
        return self._storage.version(_name("validated", exchange, day))

    def where(self, exchange: str, day: date) -> str:
        """The partition's file."""
        return self._storage.where(_name("validated", exchange, day))


def _nothing() -> None:
    """No check."""


def _coverage(notes: Mapping[str, str], *, where: str) -> Coverage:
    try:
        return Coverage.from_json(notes[_COVERAGE])
    except (KeyError, ValueError, TypeError) as error:
        raise LakeError(
            f"{where} does not say what was asked for: {error!r}.",
            hint="move it away; the partition can be fetched again.",
        ) from error


def _name(zone: str, exchange: str, day: date) -> str:
    return f"{zone}/exchange={exchange}/date={day.isoformat()}/candles.parquet"
