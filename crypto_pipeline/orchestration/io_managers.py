"""IO managers: validated candles ↔ lake, candles → TimescaleDB.

``raw_ohlcv`` has none: it is merged into, window by window while a run goes on, and a run that
dies half-way must leave what it got; an IO manager replaces what an asset returns at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
from psycopg import sql

from crypto_pipeline.core.candles import VALUES
from crypto_pipeline.core.coverage import Coverage
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc
from crypto_pipeline.corridor.completeness import filled
from crypto_pipeline.database.candle_writer import replace_live_candles, upsert_candles
from crypto_pipeline.database.tables import CANDLES
from crypto_pipeline.errors import LakeError
from crypto_pipeline.orchestration.ahead import STORED, VALIDATED, DoneAhead
from crypto_pipeline.orchestration.failures import told_to_dagster
from crypto_pipeline.orchestration.frames import Given, PartitionedCandles
from crypto_pipeline.orchestration.ledger import LedgerResource, StoredRuns
from crypto_pipeline.orchestration.parallel import in_threads
from crypto_pipeline.orchestration.partitions import Partition, partitions_of
from crypto_pipeline.orchestration.resources import DatabaseResource, LakeResource

_SHOWN = 10

#: What an IO manager does with one partition; gives the materialization's metadata.
Worker = Callable[[Partition], dict[str, Any]]


@dataclass(frozen=True)
class Stored:
    """What storing a partition did.

    Attributes:
        metadata: of its materialization.
        runs: what of each series is stored now.
    """

    metadata: Mapping[str, Any]
    runs: StoredRuns


class NoIOManager(dg.IOManager):
    """Stands where Dagster's own IO manager would: that one writes pickles, and reads them again.

    Every asset here names its own, or none (``raw_ohlcv``); Dagster stores nothing of checks.
    """

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Refuse."""
        raise NotImplementedError(f"{context.name}: name an IO manager; nothing is pickled here")

    def load_input(self, context: dg.InputContext) -> object:
        """Refuse."""
        raise NotImplementedError(f"{context.name}: name an IO manager; nothing is unpickled here")


class ValidatedLakeIOManager(dg.IOManager):
    """One Parquet file a partition, replaced as a whole; loaded one partition at a time."""

    def __init__(self, lake: LakeResource, done: DoneAhead) -> None:
        self._zone = lake.validated()
        self._done = done

    def handle_output(self, context: dg.OutputContext, obj: PartitionedCandles) -> None:
        """Write each partition as it is given."""

        @contextmanager
        def worker() -> Iterator[Worker]:
            with obj.opened() as give:

                def write(partition: Partition) -> dict[str, Any]:
                    with give(partition) as given:
                        return self.write(partition, given)

                yield write

        ahead = self._done.take(context.run_id, VALIDATED, obj.partitions)
        _noting_each(obj, worker, ahead)

    def write(self, partition: Partition, given: Given) -> dict[str, Any]:
        """Write one partition; its materialization's metadata."""
        self._zone.write(*partition, given.candles, last_check=given.last_check)
        return {
            **given.facts,
            "dagster/partition_row_count": len(given.candles),
            "path": dg.MetadataValue.path(self._zone.where(*partition)),
        }

    def load_input(self, context: dg.InputContext) -> PartitionedCandles:
        """The partitions of the downstream run, read when they are asked for."""
        return PartitionedCandles(
            partitions_of(context.asset_partition_keys), lambda: nullcontext(self._give)
        )

    @contextmanager
    def _give(self, partition: Partition) -> Iterator[Given]:
        yield Given(self.read(partition))

    def read(self, partition: Partition) -> pd.DataFrame:
        """One partition's candles.

        Raises:
            LakeError: there is no file, or it cannot be read.
        """
        candles = self._zone.read(*partition)
        if candles is None:
            raise LakeError(
                f"{self._zone.where(*partition)} is missing: {partition.key} was never validated.",
                hint="materialize validated_ohlcv for this partition first.",
            )
        return candles


class TimescaleIOManager(dg.IOManager):
    """Final candles upserted into the hypertable ``candles``, forming ones into ``live_candles``.

    What a partition lacks afterwards goes to ``candle_gaps``, with its cause. Storing a partition
    again changes nothing that is already there.
    """

    def __init__(self, database: DatabaseResource, ledger: LedgerResource, done: DoneAhead) -> None:
        self._database = database
        self._ledger = ledger
        self._done = done

    def handle_output(self, context: dg.OutputContext, obj: PartitionedCandles) -> None:
        """Store each partition as it is given; those that were stored ahead are recorded at once."""

        @contextmanager
        def worker() -> Iterator[Worker]:
            with obj.opened() as give, self._database.connect() as conn:

                def store(partition: Partition) -> dict[str, Any]:
                    with give(partition) as given:
                        stored = {partition: self.store(conn, partition, given.candles)}
                    return self._record(conn, stored, live=obj.live)[partition]

                yield store

        ahead = self._done.take(context.run_id, STORED, obj.partitions)
        with told_to_dagster(), self._database.connect() as conn:
            recorded = self._record(conn, ahead, live=obj.live)
        _noting_each(obj, worker, recorded)

    def _record(
        self, conn: psycopg.Connection, stored: Mapping[Partition, Stored], *, live: bool
    ) -> dict[Partition, dict[str, Any]]:
        """Tell the ledger; the metadata of the materializations.

        Here, not with the candles: a run that ends before this step has not done its days.
        """
        found = {partition: each.runs for partition, each in stored.items()}
        metadata = {}
        for partition, state in self._ledger.record(conn, found, live=live).items():
            missing = {f"missing: {cause}": n for cause, n in state.missing.items()}
            sums = {"missing": sum(state.missing.values()), **missing}
            metadata[partition] = {**sums, **stored[partition].metadata}
        return metadata

    def store(
        self,
        conn: psycopg.Connection,
        partition: Partition,
        candles: pd.DataFrame,
        *,
        coverage: Coverage | None = None,
    ) -> Stored:
        """Store one partition's candles (columns of ``CANDLE_DTYPES``)."""
        start = day_start_ms(partition.day)
        is_final = candles["final"]
        final = candles if is_final.all() else candles[is_final]
        written = upsert_candles(
            conn,
            final,
            exchange=partition.exchange,
            start=utc(start),
            end=utc(start + DAY_MS),
        )
        forming = replace_live_candles(conn, candles[~is_final], exchange=partition.exchange)
        metadata = {
            "dagster/partition_row_count": len(final),
            "inserted": written.inserted,
            "changed": written.changed,
            "unchanged": written.unchanged,
            "stale": written.stale,
            "forming": forming,
            "newest candles": _newest(final),
            "query": dg.MetadataValue.text(_query(partition.exchange, start)),
        }
        return Stored(metadata, StoredRuns(filled(final), coverage))

    def load_input(self, context: dg.InputContext) -> object:
        """Not offered: read ``candles`` with SQL."""
        raise NotImplementedError("nothing in this project loads timescale_candles; use SQL")


def _noting_each(
    obj: PartitionedCandles,
    worker: Callable[[], AbstractContextManager[Worker]],
    known: Mapping[Partition, dict[str, Any]],
) -> None:
    with told_to_dagster():
        for partition, metadata in in_threads(obj.partitions, worker, known=known):
            obj.note(partition, metadata)


def _newest(candles: pd.DataFrame) -> dg.TableMetadataValue:
    """The last candle of each series, as a table to look at in the UI."""
    timeframes = candles["timeframe"].cat
    series = candles["symbol"].cat.codes.astype("int64") * len(timeframes.categories)
    series += timeframes.codes
    last = candles.iloc[(~series.duplicated(keep="last")).to_numpy().nonzero()[0][:_SHOWN]]
    names = ["symbol", "timeframe", "open_time", *VALUES]
    columns = [map(str, last[name]) if name == "open_time" else last[name] for name in names]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)],
        schema=dg.TableSchema(
            [dg.TableColumn(name, "float" if name in VALUES else "string") for name in names]
        ),
    )


def _query(exchange: str, start: int) -> str:
    """The statement that shows a partition's rows, to paste into psql (shown, never executed)."""
    return (
        sql.SQL(
            "SELECT * FROM {table} WHERE exchange = {exchange} AND open_time >= {start}"
            " AND open_time < {end} ORDER BY symbol, timeframe, open_time"
        )
        .format(
            table=sql.Identifier(CANDLES.name),
            exchange=sql.Literal(exchange),
            start=sql.Literal(utc(start).isoformat()),
            end=sql.Literal(utc(start + DAY_MS).isoformat()),
        )
        .as_string()
    )
