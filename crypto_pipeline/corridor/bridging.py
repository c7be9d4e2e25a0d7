"""Proving silence across midnight, where quiet minutes are left out.

The last minutes of a day may have no trade: the candle that proves it stands in the next day's
partition, and was perhaps fetched by another run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

from crypto_pipeline.core.coverage import Coverage, Series, bridged
from crypto_pipeline.core.intervals import Intervals
from crypto_pipeline.core.timeframes import day_start_ms
from crypto_pipeline.lake.zones import RawPartition, RawZone

_DAY = timedelta(days=1)


def bridge_days(
    zone: RawZone,
    exchange: str,
    series: Sequence[Series],
    *,
    before: Mapping[date, Coverage],
    after: Mapping[date, Coverage],
) -> None:
    """Settle what partitions of a run and those beside them prove together, and write it.

    Args:
        zone: holds the partitions.
        exchange: its key.
        series: those configured.
        before: the coverage of the run's partitions when it began.
        after: the same now.

    Raises:
        LakeError: a partition cannot be read or written.
    """
    known = dict(after)
    for day in after:
        if day - _DAY not in after and _tells_of_yesterday(before.get(day), after[day], day):
            known[day - _DAY] = zone.summary(exchange, day - _DAY).coverage
        if day + _DAY not in after and _asks_of_tomorrow(after[day], day):
            known[day + _DAY] = zone.summary(exchange, day + _DAY).coverage
    changed: dict[date, dict[Series, Intervals]] = {}
    for each in series:
        for days in _consecutive(sorted(known)):
            parts = [known[day].of(each) for day in days]
            if not any(part.holes for part in parts):
                continue
            for day, old, new in zip(days, parts, bridged(parts), strict=True):
                if new.settled != old.settled:
                    changed.setdefault(day, {})[each] = new.settled
    for day, settled in changed.items():
        zone.update(exchange, day, _settling(settled))


def _tells_of_yesterday(before: Coverage | None, after: Coverage, day: date) -> bool:
    """Whether this day's first candle came, or waits for yesterday's last one to prove silence."""
    start = day_start_ms(day)
    for series, known in after.by_series.items():
        if not known.settled:
            continue
        first = known.settled[0].start
        if first == start:
            old = before.of(series).settled if before else ()
            if not old or old[0].start != start:
                return True
        elif known.holes and known.holes[0].start == start and known.holes[0].end == first:
            return known.holes[0].confirmed
    return False


def _asks_of_tomorrow(coverage: Coverage, day: date) -> bool:
    end = day_start_ms(day + _DAY)
    return any(
        known.holes and known.holes[-1].end == end and known.holes[-1].confirmed
        for known in coverage.by_series.values()
    )


def _settling(settled: Mapping[Series, Intervals]) -> Callable[[RawPartition], RawPartition]:
    def change(before: RawPartition) -> RawPartition:
        coverage = before.coverage
        for series, proven in settled.items():
            coverage = coverage.updated(series, coverage.of(series).settle(proven))
        return replace(before, coverage=coverage)

    return change


def _consecutive(days: Sequence[date]) -> list[list[date]]:
    """Days in order, cut where one is missing."""
    found: list[list[date]] = []
    for day in days:
        if found and found[-1][-1] + _DAY == day:
            found[-1].append(day)
        else:
            found.append([day])
    return found
