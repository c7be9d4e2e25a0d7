"""Asset checks, each judged partition by partition.

Which checks there are belongs here; what they ask is in :mod:`.verdicts_raw` and
:mod:`.verdicts_stored`, how their results reach Dagster in :mod:`.check_results`.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import dagster as dg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.validation import validate
from crypto_pipeline.orchestration.ahead import RAW_CHECKS, STORED_CHECKS, VALIDATED_CHECKS
from crypto_pipeline.orchestration.check_results import Judge, Verdict, evaluations
from crypto_pipeline.orchestration.failures import told_to_dagster
from crypto_pipeline.orchestration.ledger import LedgerResource
from crypto_pipeline.orchestration.onward import OnwardResource
from crypto_pipeline.orchestration.partitions import Partition, partitions_of
from crypto_pipeline.orchestration.resources import DatabaseResource, LakeResource
from crypto_pipeline.orchestration.verdicts_raw import candle_schema

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
            return onward.judge_raw(partition, raw, validate(raw.observations, day=partition.day))

        known = _ahead(context, onward, RAW_CHECKS)
        yield from evaluations(context, raw_specs, lambda: nullcontext(judge), known=known)

    @dg.multi_asset_check(specs=validated_specs, can_subset=True)
    def validated_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        onward: dg.ResourceParam[OnwardResource],
    ) -> Results:
        zone = lake.validated()

        def judge(partition: Partition) -> Mapping[str, Verdict]:
            return {"candle_schema": candle_schema(zone.read(*partition))}

        known = {
            partition: {"candle_schema": verdict}
            for partition, verdict in _ahead(context, onward, VALIDATED_CHECKS).items()
        }
        yield from evaluations(context, validated_specs, lambda: nullcontext(judge), known=known)

    @dg.multi_asset_check(specs=stored_specs, can_subset=True)
    def timescale_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        database: dg.ResourceParam[DatabaseResource],
        ledger: dg.ResourceParam[LedgerResource],
        onward: dg.ResourceParam[OnwardResource],
    ) -> Results:
        zone = lake.validated()
        ahead = _ahead(context, onward, STORED_CHECKS)
        with told_to_dagster(), database.connect() as conn:
            recorded = ledger.recorded(conn, list(ahead))

        @contextmanager
        def opened() -> Iterator[Judge]:
            with database.connect() as conn:

                def judge(partition: Partition) -> Mapping[str, Verdict]:
                    coverage = lake.raw().summary(*partition).coverage
                    slots = zone.read_slots(*partition)
                    archived = onward.judge_stored.archived(partition, coverage, slots)
                    seen = onward.judge_stored.seen(partition, conn)
                    now = ledger.recorded(conn, [partition])  # what a minute run may have changed
                    return onward.judge_stored(partition, archived, seen, now[partition])

                yield judge

        known = {
            partition: onward.judge_stored(partition, archived, seen, recorded[partition])
            for partition, (archived, seen) in ahead.items()
        }
        yield from evaluations(context, stored_specs, opened, known=known)

    return [raw_checks, validated_checks, timescale_checks]


def _ahead(
    context: dg.AssetCheckExecutionContext, onward: OnwardResource, step: str
) -> dict[Partition, Any]:
    """What the run did of a step while it still collected."""
    op = context.op_execution_context
    return onward.done.take(op.run_id, step, partitions_of(op.partition_keys))
