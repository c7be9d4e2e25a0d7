"""The three assets: ``raw_ohlcv`` → ``validated_ohlcv`` → ``timescale_candles``.

Here belongs what Dagster needs to know of them: partitions, dependencies, metadata. What they do
with a candle is in :mod:`crypto_pipeline.corridor` and :mod:`crypto_pipeline.core`.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import date
from itertools import groupby
from typing import Any, Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.pacing import Pacer
from crypto_pipeline.core.planning import asked_just_now, resting, settling_ms
from crypto_pipeline.corridor.collect import Collection
from crypto_pipeline.corridor.collected import CollectedDay
from crypto_pipeline.corridor.garbage import rare_collections
from crypto_pipeline.corridor.plan import Resting
from crypto_pipeline.corridor.requests import FailedRequest
from crypto_pipeline.errors import CryptoPipelineError, LakeError
from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration.ahead import Work, in_background
from crypto_pipeline.orchestration.failures import told_to_dagster
from crypto_pipeline.orchestration.frames import PartitionedCandles
from crypto_pipeline.orchestration.ledger import LedgerResource
from crypto_pipeline.orchestration.onward import OnwardResource
from crypto_pipeline.orchestration.partitions import Partition, partitions_of
from crypto_pipeline.orchestration.resources import CcxtResource, DatabaseResource, LakeResource
from crypto_pipeline.orchestration.schemas import candles_columns, observation_columns
from crypto_pipeline.orchestration.tags import AGAIN_TAG, EXCHANGE_TAG, HEALS_TAG
from crypto_pipeline.orchestration.validating import validating

GROUP: Final = "candles"


def build_assets(
    config: PipelineConfig, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetsDefinition]:
    """The assets over these partitions."""
    policy = dg.BackfillPolicy.multi_run(config.backfill.partitions_per_run)

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=policy,
        group_name=GROUP,
        kinds={"ccxt", "parquet"},
        metadata={"dagster/column_schema": observation_columns()},
    )
    def raw_ohlcv(
        context: dg.AssetExecutionContext,
        ccxt: dg.ResourceParam[CcxtResource],
        lake: dg.ResourceParam[LakeResource],
        database: dg.ResourceParam[DatabaseResource],
        ledger: dg.ResourceParam[LedgerResource],
        onward: dg.ResourceParam[OnwardResource],
    ) -> None:
        """What the exchange answered: every observation of every configured series of a day.

        Asks only for what the partition lacks, and keeps all that ever came.
        """
        with told_to_dagster():
            if EXCHANGE_TAG not in context.run.tags:
                ledger.intend(partitions_of(context.partition_keys))
            _collect_each(context, ccxt, lake, database, ledger, onward)

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=policy,
        group_name=GROUP,
        kinds={"pandera", "parquet"},
        deps=[raw_ohlcv],
        io_manager_key="validated_lake",
        metadata={"dagster/column_schema": candles_columns()},
    )
    def validated_ohlcv(
        context: dg.AssetExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        database: dg.ResourceParam[DatabaseResource],
    ) -> PartitionedCandles:
        """Conforming candles only; what breaks a rule goes to ``rejected_candles`` with its name."""
        return PartitionedCandles(
            partitions_of(context.partition_keys),
            lambda: validating(lake, database),
            note=_noting(context),
        )

    @dg.asset(
        partitions_def=partitions,
        backfill_policy=policy,
        group_name=GROUP,
        kinds={"timescaledb", "postgres"},
        io_manager_key="timescale",
        metadata={
            "dagster/column_schema": candles_columns(),
            "dagster/table_name": "public.candles",
        },
    )
    def timescale_candles(
        context: dg.AssetExecutionContext, validated_ohlcv: PartitionedCandles
    ) -> PartitionedCandles:
        """Final candles in the hypertable ``candles``, the forming ones in ``live_candles``."""
        return replace(
            validated_ohlcv, note=_noting(context), live=EXCHANGE_TAG in context.run.tags
        )

    return [raw_ohlcv, validated_ohlcv, timescale_candles]


def _collect_each(
    context: dg.AssetExecutionContext,
    ccxt: CcxtResource,
    lake: LakeResource,
    database: DatabaseResource,
    ledger: LedgerResource,
    onward: OnwardResource,
) -> None:
    """Collect from each exchange of the run's partitions; the first error if all of them failed."""
    failures: list[CryptoPipelineError] = []
    wanted = partitions_of(context.partition_keys)
    for exchange, days in groupby(wanted, key=lambda partition: partition.exchange):
        try:
            _collect(context, exchange, [day for _, day in days], ccxt, lake, database, onward)
        except CryptoPipelineError as error:
            # The other exchanges of the range go on; this one's partitions do not turn green.
            failures.append(error)
            failed = [partition for partition in wanted if partition.exchange == exchange]
            for partition in failed:
                _noting(context)(partition, {"error": str(error)})
            # Nothing will be stored, so the ledger would not hear of what failed.
            try:
                ledger.record_failed(failed, live=EXCHANGE_TAG in context.run.tags)
            except LakeError as unreadable:
                # The others go on all the same; what kept these from being collected is told below.
                context.log.error(str(unreadable))  # noqa: TRY400 - its message says all
    exchanges = {partition.exchange for partition in wanted}
    for failure in failures if len(failures) < len(exchanges) else failures[1:]:
        context.log.error(str(failure))
    if failures and len(failures) == len(exchanges):
        raise failures[0]


def _collect(
    context: dg.AssetExecutionContext,
    exchange: str,
    days: list[date],
    ccxt: CcxtResource,
    lake: LakeResource,
    database: DatabaseResource,
    onward: OnwardResource,
) -> None:
    note = _noting(context)
    config = ccxt.config
    zone = lake.raw()

    def on_day(day: date, collected: CollectedDay, partition: RawPartition | None) -> None:
        context.log.info(
            f"{exchange} {day}: {collected.rows:,} rows from {collected.requests} requests"
            + (f", {len(collected.failed)} failed" if collected.failed else "")
        )
        note(
            Partition(exchange, day),
            {
                "dagster/partition_row_count": collected.observations,
                "requests": collected.requests,
                "rows received": collected.rows,
                "failed requests": len(collected.failed),
                "requests not made": collected.not_asked,
                **_failed_table(collected.failed),
                "path": dg.MetadataValue.path(zone.where(exchange, day)),
            },
        )
        take_on(Partition(exchange, day), partition)

    def note_budget(pacer: Pacer | None) -> None:
        if pacer is not None:
            used = {name.replace("_", " "): figure for name, figure in asdict(pacer.counts).items()}
            note(
                Partition(exchange, days[-1]),
                {f"budget: {name}": round(figure, 3) for name, figure in used.items()},
            )

    live = EXCHANGE_TAG in context.run.tags

    async def collect() -> None:
        async with ccxt.open(exchange, live=live) as wrapper:
            if live:
                wait = settling_ms(wrapper.our_now, settle_ms=wrapper.habits.settle_ms)
                await asyncio.sleep(wait / 1_000)
            with database.raw_locks() as lock:
                collection = Collection(
                    exchange=wrapper,
                    zone=lake.raw(lock),
                    days=days,
                    run_id=context.run.run_id,
                    reread=config.live.reread,
                    resting=_resting(context.run.tags, ccxt, exchange, database),
                    on_day=on_day,
                )
                try:
                    collected = await collection.run()
                finally:
                    note_budget(wrapper.pacer)
            context.log.info(
                f"{exchange}: {wrapper.counts.requests} requests, {wrapper.counts.retried} of them"
                f" again; {len(collected.failed)} failed for good, {collected.not_asked} left out"
            )

    def waiting(day: date) -> None:
        context.log.info(f"{exchange} {day}: another run collects it; this one waits for its end.")

    def not_ahead(error: BaseException) -> None:
        context.log.info(f"{exchange}: later steps do their work themselves, because {error}")

    claimed = nullcontext() if live else database.claimed(exchange, days, waiting=waiting)
    ahead: AbstractContextManager[Work] = nullcontext(lambda partition, known: None)
    if onward.goes_on(context):
        run_id = context.run.run_id
        ahead = in_background(onward.done, run_id, lambda: onward.opened(run_id), failed=not_ahead)
    with claimed, rare_collections(), ahead as take_on:
        asyncio.run(collect())


def _resting(
    tags: Mapping[str, str], ccxt: CcxtResource, exchange: str, database: DatabaseResource
) -> Resting:
    """The holes a run leaves alone: by itself those that are not due, asked by a person few."""
    if AGAIN_TAG in tags:
        return lambda known, now: ()
    if EXCHANGE_TAG not in tags and HEALS_TAG not in tags:
        return lambda known, now: asked_just_now(known, now=now)
    quiet = ccxt.config.exchanges[exchange].exchange_habits.quiet
    back = database.back_at(exchange)
    return lambda known, now: resting(known, now=now, quiet=quiet, back_since=back)


def _failed_table(failed: Sequence[FailedRequest]) -> dict[str, Any]:
    """The failed requests as a table; nothing where none failed."""
    if not failed:
        return {}
    records = [
        dg.TableRecord(
            {
                "symbol": entry.series.symbol,
                "timeframe": entry.series.timeframe,
                "error": type(entry.error).__name__,
                "message": entry.error.message,
                "a rerun helps": str(entry.error.rerun_helps),
            }
        )
        for entry in failed[:20]
    ]
    return {"failures": dg.MetadataValue.table(records)}


def _noting(context: dg.AssetExecutionContext) -> Any:
    def note(partition: Partition, metadata: Mapping[str, Any]) -> None:
        context.add_asset_metadata(metadata, partition_key=partition.key)

    return note
