"""Asset checks, each judged partition by partition.

What a check asks belongs here; how its results reach Dagster is :mod:`.check_results`' business.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator, Mapping
from typing import Final

import dagster as dg
import pandas as pd
from pandera.errors import SchemaErrors

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.candles import KEY
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.intervals import Interval, subtract
from crypto_pipeline.core.rules import CANDLE_SCHEMA
from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, timeframe_ms, to_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.database.candle_reader import count_candles
from crypto_pipeline.orchestration.check_results import Verdict, evaluations
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import ClockResource, DatabaseResource, LakeResource

Results = Iterator[dg.AssetCheckEvaluation | dg.Output[None]]

_EXAMPLES = 10

#: Every check by name: a partition is judged when each has said its word.
CHECKS: Final = frozenset(
    {
        "ohlcv_constraints",
        "every_request_answered",
        "candle_schema",
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
        clock: dg.ResourceParam[ClockResource],
    ) -> Results:
        zone = lake.raw()

        def judge(partition: Partition) -> Mapping[str, Verdict]:
            raw = zone.read(*partition)
            return {
                "ohlcv_constraints": _constraints(raw.observations, partition),
                "every_request_answered": _answered(raw.coverage, config, partition, clock.now_ms),
            }

        yield from evaluations(context, raw_specs, judge)

    @dg.multi_asset_check(specs=validated_specs, can_subset=True)
    def validated_checks(
        context: dg.AssetCheckExecutionContext, lake: dg.ResourceParam[LakeResource]
    ) -> Results:
        zone = lake.validated()

        def judge(partition: Partition) -> Mapping[str, Verdict]:
            return {"candle_schema": _schema(zone.read(*partition))}

        yield from evaluations(context, validated_specs, judge)

    @dg.multi_asset_check(specs=stored_specs, can_subset=True)
    def timescale_checks(
        context: dg.AssetCheckExecutionContext,
        lake: dg.ResourceParam[LakeResource],
        database: dg.ResourceParam[DatabaseResource],
        clock: dg.ResourceParam[ClockResource],
    ) -> Results:
        zone = lake.validated()
        with database.connect() as conn:

            def judge(partition: Partition) -> Mapping[str, Verdict]:
                start = day_start_ms(partition.day)
                stored = count_candles(
                    conn, exchange=partition.exchange, start=utc(start), end=utc(start + DAY_MS)
                )
                return {
                    "stored_equals_validated": _stored(stored, zone.read(*partition)),
                    "seconds_behind_now": _lag(stored, config, partition, clock.now_ms),
                }

            yield from evaluations(context, stored_specs, judge)

    return [raw_checks, validated_checks, timescale_checks]


def _constraints(observations: pd.DataFrame, partition: Partition) -> Verdict:
    verdict = validate(observations, day=partition.day)
    if verdict.rejected.empty:
        return Verdict(
            passed=True,
            description=f"All {len(observations):,} observations keep the rules.",
            metadata={"observations": len(observations), "rejected": 0},
        )
    lost = _without_a_candle(verdict.rejected, verdict.candles)
    examples = [
        dg.TableRecord({"rule": row.rule, "symbol": str(row.symbol), "message": row.message})
        for row in verdict.rejected.head(_EXAMPLES).itertuples()
    ]
    return Verdict(
        passed=False,
        severity=dg.AssetCheckSeverity.ERROR if lost else dg.AssetCheckSeverity.WARN,
        description=f"{len(verdict.rejected):,} of {len(observations):,} observations were refused;"
        f" {lost} candles have no conforming observation.",
        metadata={
            "observations": len(observations),
            "rejected": len(verdict.rejected),
            "candles lost": lost,
            **{f"rejected: {rule}": count for rule, count in verdict.counts.items()},
            "examples": dg.MetadataValue.table(examples),
        },
    )


def _without_a_candle(rejected: pd.DataFrame, candles: pd.DataFrame) -> int:
    """Refused candles, named by a time on the grid, that no other observation gave."""
    named = rejected[
        ~rejected["rule"].isin(["open_time_invalid", "off_grid", "outside_partition", "in_future"])
    ]
    refused = pd.MultiIndex.from_frame(named[list(KEY)].astype({"symbol": str, "timeframe": str}))
    given = pd.MultiIndex.from_frame(candles[list(KEY)].astype({"symbol": str, "timeframe": str}))
    return len(refused.unique().difference(given))


def _answered(
    coverage: Coverage, config: PipelineConfig, partition: Partition, now: int
) -> Verdict:
    """Every candle that is due was asked for, and the request answered."""
    exchange = config.exchanges[partition.exchange]
    start = max(day_start_ms(partition.day), day_start_ms(exchange.start))
    due = min(day_start_ms(partition.day) + DAY_MS, now - config.live.max_lag_seconds * 1_000)
    missing: dict[Series, int] = {}
    for series in exchange.series:
        length = timeframe_ms(series.timeframe)
        wanted = Interval(start, due // length * length)
        left = subtract([wanted], coverage.of(series).settled)
        if left:
            missing[series] = sum(end - begin for begin, end in left) // length
    failures = [
        dg.TableRecord(
            {
                "symbol": series.symbol,
                "timeframe": series.timeframe,
                "from": utc(failure.start).isoformat(),
                "to": utc(failure.end).isoformat(),
                "attempts": failure.attempts,
                "error": failure.error,
            }
        )
        for series in exchange.series
        for failure in coverage.of(series).failures
    ]
    return Verdict(
        passed=not missing and not failures,
        description="Every candle that is due was asked for and answered."
        if not missing and not failures
        else f"{sum(missing.values()):,} candles of {len(missing)} series were not answered;"
        f" {len(failures)} requests failed.",
        metadata={
            "series": len(exchange.series),
            "candles not answered": sum(missing.values()),
            "failed requests": len(failures),
            **({"failures": dg.MetadataValue.table(failures[:_EXAMPLES])} if failures else {}),
        },
    )


def _schema(candles: pd.DataFrame | None) -> Verdict:
    if candles is None:
        return Verdict(passed=False, description="The partition was never validated.")
    try:
        CANDLE_SCHEMA.validate(candles, lazy=True)
    except SchemaErrors as errors:
        broken = errors.failure_cases["check"].astype(str).value_counts()
        return Verdict(
            passed=False,
            description=f"{int(broken.sum())} breaches of {', '.join(broken.index)}.",
            metadata={f"broken: {name}": int(count) for name, count in broken.items()},
        )
    return Verdict(
        passed=True,
        description=f"{len(candles):,} candles keep the schema.",
        metadata={"candles": len(candles)},
    )


def _stored(stored: pd.DataFrame, candles: pd.DataFrame | None) -> Verdict:
    if candles is None:
        return Verdict(passed=False, description="The partition was never validated.")
    final = candles[candles["final"]].astype({"symbol": str, "timeframe": str})
    expected = final.groupby(["symbol", "timeframe"], sort=True).size().rename("validated")
    counted = stored.astype({"symbol": str, "timeframe": str}).set_index(["symbol", "timeframe"])
    both = pd.concat([expected, counted["count"].rename("stored")], axis=1).fillna(0).astype(int)
    short = both[both["stored"] != both["validated"]]
    return Verdict(
        passed=short.empty,
        description=f"{int(both['stored'].sum()):,} stored, {int(both['validated'].sum()):,}"
        f" validated; {len(short)} of {len(both)} series differ.",
        metadata={
            "stored": int(both["stored"].sum()),
            "validated": int(both["validated"].sum()),
            "series that differ": len(short),
        },
    )


def _lag(stored: pd.DataFrame, config: PipelineConfig, partition: Partition, now: int) -> Verdict:
    if day_of(now) != partition.day:
        return Verdict(passed=True, description="Not today's partition.")
    start = day_start_ms(partition.day)
    closed = {
        Series(str(row.symbol), str(row.timeframe)): to_ms(row.last)
        + timeframe_ms(str(row.timeframe))
        for row in stored.itertuples()
    }
    behind = {
        series: (now - closed.get(series, start)) / 1_000
        for series in config.exchanges[partition.exchange].series
    }
    late = {
        series: seconds
        for series, seconds in behind.items()
        if seconds > timeframe_ms(series.timeframe) / 1_000 + config.live.max_lag_seconds
    }
    # Hours pass between the candles of 4h: how fresh an exchange is, its shortest timeframe says.
    shortest = min(timeframe_ms(series.timeframe) for series in behind)
    judged = [series for series in behind if timeframe_ms(series.timeframe) == shortest]
    worst = max(judged, key=lambda series: behind[series])
    return Verdict(
        passed=not late,
        description=f"{worst.symbol} {worst.timeframe} is {behind[worst]:.0f} s behind now, the most"
        f" of {len(judged)} series; {len(late)} of {len(behind)} are later than they may be.",
        metadata={"seconds behind now": float(behind[worst]), "series too late": len(late)},
    )
