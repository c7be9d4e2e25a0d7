"""What the checks of ``timescale_candles`` ask of one partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import dagster as dg
import pandas as pd
import psycopg

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.gaps import CAUSES, PROVEN, Gap, PartitionState
from crypto_pipeline.core.intervals import Interval, Intervals, subtract
from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, timeframe_ms, utc
from crypto_pipeline.corridor.completeness import filled
from crypto_pipeline.database.gap_reader import stored_runs
from crypto_pipeline.orchestration.check_results import Verdict
from crypto_pipeline.orchestration.ledger import LedgerResource, Recorded
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.resources import ClockResource
from crypto_pipeline.plaintext import in_markdown

_EXAMPLES: Final = 25

Runs = Mapping[Series, Intervals]


@dataclass(frozen=True)
class Archived:
    """What the archive says of a partition: asked for, and validated (None if it never was)."""

    coverage: Coverage
    validated: Runs | None


@dataclass(frozen=True)
class StoredJudge:
    """What the checks of ``timescale_candles`` say of a partition."""

    config: PipelineConfig = field(repr=False)
    ledger: LedgerResource
    clock: ClockResource

    def __call__(
        self, partition: Partition, archived: Archived, stored: Runs, recorded: Recorded
    ) -> Mapping[str, Verdict]:
        """A verdict for each check, given what the table was :meth:`seen` to hold."""
        now = recorded.checked_at or self.clock.now_ms
        return {
            "completeness": completeness(
                self.ledger.look(partition, archived.coverage, stored, now=now), recorded.gaps
            ),
            "stored_equals_validated": stored_equals_validated(
                stored, archived.validated, partition
            ),
            "seconds_behind_now": seconds_behind_now(
                archived.coverage, stored, self.config, partition, self.clock.now_ms
            ),
        }

    def seen(self, partition: Partition, conn: psycopg.Connection) -> Runs:
        """What the table holds of a partition: the one look of all its checks."""
        start = day_start_ms(partition.day)
        return stored_runs(
            conn,
            exchange=partition.exchange,
            series=self.config.exchanges[partition.exchange].series,
            start=utc(start),
            end=utc(start + DAY_MS),
        )

    def archived(
        self, partition: Partition, coverage: Coverage, slots: pd.DataFrame | None
    ) -> Archived:
        """What the archive says, as far as it is judged.

        Args:
            partition: to be judged.
            coverage: what was asked for.
            slots: symbol, timeframe, open_time and final of the validated candles; None if the
                partition was never validated.
        """
        series = self.config.exchanges[partition.exchange].series
        return Archived(coverage, None if slots is None else filled(slots, series))


def stored_equals_validated(stored: Runs, validated: Runs | None, partition: Partition) -> Verdict:
    """The table holds exactly the final validated candles of the partition, candle by candle."""
    if validated is None:
        return Verdict(passed=False, description="The partition was never validated.")
    bounds = Interval(day_start_ms(partition.day), day_start_ms(partition.day) + DAY_MS)
    absent = _candles({s: subtract(runs, stored.get(s, ())) for s, runs in validated.items()})
    strange = _candles({s: subtract(runs, validated.get(s, ())) for s, runs in stored.items()})
    within = {series: subtract(runs, subtract(runs, [bounds])) for series, runs in stored.items()}
    return Verdict(
        passed=not absent and not strange,
        description=f"{_candles(within):,} stored, {_candles(validated):,} validated;"
        f" {absent} are not in the table, {strange} only there.",
        metadata={
            "stored": _candles(within),
            "validated": _candles(validated),
            "not in the table": absent,
            "only in the table": strange,
        },
    )


def completeness(found: tuple[Sequence[Gap], PartitionState], recorded: Sequence[Gap]) -> Verdict:
    """Every candle that is due is stored, or its absence is proven; and the ledger says so.

    Args:
        found: gaps and sums by what the table holds now.
        recorded: the ledger's gaps of the partition.
    """
    gaps, state = found
    unlabelled = {_key(gap) for gap in gaps} ^ {_key(gap) for gap in recorded}
    missing = sum(state.missing.values())
    causes = ", ".join(f"{n:,} {cause}" for cause, n in sorted(state.missing.items()))
    open_gaps = [gap for gap in gaps if gap.cause not in PROVEN]
    return Verdict(
        passed=state.complete and not unlabelled,
        description=f"{state.stored:,} of {state.expected:,} candles are stored"
        + (f"; missing: {causes}." if missing else ".")
        + (f" The ledger differs in {len(unlabelled)} gaps." if unlabelled else ""),
        metadata={
            "expected": state.expected,
            "stored": state.stored,
            "missing": missing,
            "missing without proof": state.unproven,
            **{f"missing: {cause}": state.missing.get(cause, 0) for cause in CAUSES},
            **({"open gaps": _table(open_gaps)} if open_gaps else {}),
        },
    )


def seconds_behind_now(
    coverage: Coverage, stored: Runs, config: PipelineConfig, partition: Partition, now: int
) -> Verdict:
    """How far behind now the newest answer about each series is.

    An answer counts even where it held no candle: minutes without trades are no delay.
    """
    if day_of(now) != partition.day:
        return Verdict(passed=True, description="Not today's partition.")
    if partition.day < config.exchanges[partition.exchange].start:
        return Verdict(passed=True, description="Before the first day that is to be collected.")
    start = day_start_ms(partition.day)

    def reached(series: Series) -> int:
        ends = [end for _, end in stored.get(series, ())]
        return max([start, coverage.of(series).reached or start, *ends])

    behind = {
        series: (now - reached(series)) / 1_000
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
        # the UI renders descriptions as Markdown
        description=f"{in_markdown(worst.symbol)} {worst.timeframe} is {behind[worst]:.0f} s behind now, the most"
        f" of {len(judged)} series; {len(late)} of {len(behind)} are later than they may be.",
        metadata={"seconds behind now": float(behind[worst]), "series too late": len(late)},
    )


def _candles(runs: Runs) -> int:
    return sum(
        (end - start) // timeframe_ms(series.timeframe)
        for series, intervals in runs.items()
        for start, end in intervals
    )


def _key(gap: Gap) -> tuple[object, ...]:
    return gap.symbol, gap.timeframe, gap.start, gap.end, gap.cause


def _table(gaps: Sequence[Gap]) -> dg.TableMetadataValue:
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "symbol": gap.symbol,
                    "timeframe": gap.timeframe,
                    "from": utc(gap.start).isoformat(),
                    "to": utc(gap.end).isoformat(),
                    "cause": gap.cause,
                    "evidence": gap.evidence,
                    "next try": "" if gap.next_retry is None else utc(gap.next_retry).isoformat(),
                }
            )
            for gap in gaps[:_EXAMPLES]
        ]
    )
