"""Asset checks, each judged partition by partition.

Which checks there are belongs here; what they ask is in :mod:`.verdicts_raw` and
:mod:`.verdicts_stored`, how their results reach Dagster in :mod:`.check_results`.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Final

import dagster as dg
import psycopg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.corridor.completeness import filled
from crypto_pipeline.database.exchange_states import checked_at
from crypto_pipeline.database.gap_reader import gaps, stored_runs
from crypto_pipeline.orchestration.check_results import Judge, Verdict, evaluations
from crypto_pipeline.orchestration.ledger import LedgerResource
from crypto_pipeline.orchestration.onward import OnwardResource
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import ClockResource, DatabaseResource, LakeResource
from crypto_pipeline.orchestration.verdicts_raw import candle_schema
from crypto_pipeline.orchestration.verdicts_stored import (
    completeness,
    seconds_behind_now,
    stored_equals_validated,
)

Results = Iterator[dg.AssetCheckEvaluation | dg.Output[None]]

#: Every check by name: a partition is judged when each has said its word.
CHECKS: Final = frozenset(
    {
        "ohlcv_constraints",
        "every_request_answered",
        "candle_schema",
        "completeness",
        "stored_equals_validated",
        "seconds_behind_now",
    }
)


def build_checks(
    config: PipelineConfig, partitions: dg.MultiPartitionsDefinition
) -> list[dg.AssetChecksDefinition]:
    """The checks over these partitions."""

    def spec(
        name: str, asset: str, description: str, *, blocking: bool = False
    ) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(
            name, asset=asset, description=description, blocking=blocking, partitions_def=partitions
        )

    raw_specs = [
        spec("ohlcv_constraints", "raw_ohlcv", "Every observation keeps the OHLCV rules."),
        spec("every_request_answered", "raw_ohlcv", "All that is due was asked and answered."),
    ]
    validated_specs = [
        spec(
            "candle_schema",
            "validated_ohlcv",
            "The candles keep the schema and every rule; nothing is stored where they do not.",
            blocking=True,
        )
    ]
    stored_specs = [
        spec(
            "completeness",
            "timescale_candles",
            "Every candle that is due is stored, or the ledger proves why there is none.",
        ),
        spec(
            "stored_equals_validated",
            "timescale_candles",
            "The table holds each final validated candle of every series.",
        ),
        spec(
            "seconds_behind_now",
            "timescale_candles",
            "Today's newest candle of each series is fresh; other days are not judged.",
        ),
    ]

    @dg.multi_asset_check(specs=raw_specs, can_subset=True)
    def raw_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        onward: dg.ResourceParam[OnwardResource],
    ) -> Results:
        zone = lake.raw()

        def judge(partition: Partition) -> Mapping[str, Verdict]:
            raw = zone.read(*partition)
            return onward.judge(partition, raw, validate(raw.observations, day=partition.day))

        yield from evaluations(context, raw_specs, lambda: nullcontext(judge), done=onward.done)

    @dg.multi_asset_check(specs=validated_specs, can_subset=True)
    def validated_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        onward: dg.ResourceParam[OnwardResource],
    ) -> Results:
        zone = lake.validated()

        def judge(partition: Partition) -> Mapping[str, Verdict]:
            return {"candle_schema": candle_schema(zone.read(*partition))}

        yield from evaluations(
            context, validated_specs, lambda: nullcontext(judge), done=onward.done
        )

    @dg.multi_asset_check(specs=stored_specs, can_subset=True)
    def timescale_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        database: dg.ResourceParam[DatabaseResource],
        ledger: dg.ResourceParam[LedgerResource],
        clock: dg.ResourceParam[ClockResource],
    ) -> Results:
        def judged(conn: psycopg.Connection, partition: Partition) -> Mapping[str, Verdict]:
            exchange, day = partition
            start = utc(day_start_ms(day))
            end = utc(day_start_ms(day) + DAY_MS)
            series = config.exchanges[exchange].series
            stored = stored_runs(conn, exchange=exchange, series=series, start=start, end=end)
            slots = lake.validated().read_slots(*partition)
            validated = None if slots is None else filled(slots, series)
            coverage = lake.raw().summary(*partition).coverage
            checked = checked_at(conn, exchange=exchange, day=day)
            return {
                "completeness": completeness(
                    ledger.look(partition, stored, now=checked or clock.now_ms),
                    gaps(conn, exchange=exchange, start=start, end=end),
                ),
                "stored_equals_validated": stored_equals_validated(stored, validated, partition),
                "seconds_behind_now": seconds_behind_now(
                    coverage, stored, config, partition, clock.now_ms
                ),
            }

        @contextmanager
        def opened() -> Iterator[Judge]:
            with database.connect() as conn:
                yield partial(judged, conn)

        yield from evaluations(context, stored_specs, opened)

    return [raw_checks, validated_checks, timescale_checks]
