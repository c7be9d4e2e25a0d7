"""What the checks of ``raw_ohlcv`` and ``validated_ohlcv`` ask of one partition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import dagster as dg
import pandas as pd
from pandera.errors import SchemaErrors

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.candles import KEY
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.holes import Hole
from crypto_pipeline.core.intervals import Interval, subtract
from crypto_pipeline.core.planning import reach
from crypto_pipeline.core.rules import CANDLE_SCHEMA, keeps_schema
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, timeframe_ms, utc
from crypto_pipeline.core.validation import Validation
from crypto_pipeline.lake.zones import RawPartition
from crypto_pipeline.orchestration.check_results import Verdict
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import ClockResource

_EXAMPLES: Final = 10


@dataclass(frozen=True)
class RawJudge:
    """What the checks of ``raw_ohlcv`` say of a partition."""

    config: PipelineConfig = field(repr=False)
    clock: ClockResource

    def is_past(self, partition: Partition) -> bool:
        """Whether all of the partition is due, so that verdicts do not change by waiting."""
        end = day_start_ms(partition.day) + DAY_MS
        return self.clock.now_ms >= end + self.config.live.max_lag_seconds * 1_000

    def __call__(
        self, partition: Partition, raw: RawPartition, verdict: Validation
    ) -> Mapping[str, Verdict]:
        """A verdict for each check; ``verdict`` is that on the partition's observations."""
        return {
            "ohlcv_constraints": ohlcv_constraints(raw.observations, verdict),
            "every_request_answered": every_request_answered(
                raw.coverage, self.config, partition, self.clock.now_ms
            ),
        }


def ohlcv_constraints(observations: pd.DataFrame, verdict: Validation) -> Verdict:
    """Every observation keeps the rules; an error where a candle has no conforming one."""
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


def every_request_answered(
    coverage: Coverage, config: PipelineConfig, partition: Partition, now: int
) -> Verdict:
    """Every candle that is due was asked for, and no request stayed without an answer."""
    exchange = config.exchanges[partition.exchange]
    start = max(day_start_ms(partition.day), day_start_ms(exchange.start))
    due = min(day_start_ms(partition.day) + DAY_MS, now - config.live.max_lag_seconds * 1_000)
    missing: dict[Series, int] = {}
    failed: list[tuple[Series, Hole]] = []
    for series in exchange.series:
        known, length = coverage.of(series), timeframe_ms(series.timeframe)
        oldest = reach(now, timeframe=series.timeframe, habits=exchange.exchange_habits)
        if exchange.exchange_habits.trades:
            oldest = 0
        elif oldest:
            oldest += length  # what an answer settles begins one candle later
        first, last = (known.life.first, known.life.last) if known.life else (None, None)
        wanted = Interval(max(start, oldest, first or 0), min(due // length * length, last or due))
        # Of what nobody asks for again, as it is out of reach or of its symbol's life, none is due.
        begin, end = wanted.start, last or day_start_ms(partition.day) + DAY_MS
        failed += [
            (series, hole)
            for hole in known.holes
            if hole.kind == "failed" and begin < end and hole.end > begin and hole.start < end
        ]
        heard = [hole.interval for hole in known.holes if hole.kind != "failed"]
        left = subtract([wanted], [*known.settled, *heard])
        if left:
            missing[series] = sum(end - begin for begin, end in left) // length
    failures = [
        dg.TableRecord(
            {
                "symbol": series.symbol,
                "timeframe": series.timeframe,
                "from": utc(hole.start).isoformat(),
                "to": utc(hole.end).isoformat(),
                "attempts": hole.attempts,
                "error": hole.note,
            }
        )
        for series, hole in failed
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


def candle_schema(candles: pd.DataFrame | None) -> Verdict:
    """The frame keeps the schema and every rule."""
    if candles is None:
        return Verdict(passed=False, description="The partition was never validated.")
    try:
        if not keeps_schema(candles):
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
