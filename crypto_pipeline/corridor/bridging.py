"""Proving silence across midnight, where quiet minutes are left out.

The last minutes of a day may have no trade: the candle that proves it stands in the next day's
partition, and was perhaps fetched by another run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta

from crypto_pipeline.core.coverage import Coverage, Series, bridged
from crypto_pipeline.core.intervals import Intervals, intersection
from crypto_pipeline.core.timeframes import day_start_ms
from crypto_pipeline.lake.zones import RawPartition, RawZone

_DAY = timedelta(days=1)

#: A market may be silent for days; one that is silent for longer is looked at by the next repair.
_FARTHEST = 30


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
        if _tells_of_yesterday(before.get(day), after[day], day):
            known.setdefault(day - _DAY, zone.summary(exchange, day - _DAY).coverage)
    for step in (-_DAY, _DAY):
        for day in sorted(known, reverse=step < timedelta(0)):
            _walk(zone, exchange, known, day, step)
    for day, settled in _proven(known, series).items():
        zone.update(exchange, day, _settling(settled))


def _proven(
    known: Mapping[date, Coverage], series: Sequence[Series]
) -> dict[date, dict[Series, Intervals]]:
    """What is settled of each series, for the days on which that is more than before."""
    changed: dict[date, dict[Series, Intervals]] = {}
    for each in series:
        for days in _consecutive(sorted(known)):
            parts = [known[day].of(each) for day in days]
            if not any(part.holes for part in parts):
                continue
            for day, old, new in zip(days, parts, bridged(parts), strict=True):
                if new.settled != old.settled:
                    changed.setdefault(day, {})[each] = new.settled
    return changed


def _walk(
    zone: RawZone, exchange: str, known: dict[date, Coverage], day: date, step: timedelta
) -> None:
    """Read the days beside, as long as believed silence reaches the border to the next one."""
    for _ in range(_FARTHEST):
        border = day_start_ms(day if step < timedelta(0) else day + _DAY)
        if not _silent_at(known[day], border):
            return
        day += step
        if day not in known:
            known[day] = zone.summary(exchange, day).coverage


def _tells_of_yesterday(before: Coverage | None, after: Coverage, day: date) -> bool:
    """Whether this day's first candle came, at its very start: yesterday's last ones may need it."""
    start = day_start_ms(day)

    def begins(coverage: Coverage | None, series: Series) -> bool:
        settled = coverage.of(series).settled if coverage else ()
        return bool(settled) and settled[0].start == start

    return any(begins(after, series) and not begins(before, series) for series in after.by_series)


def _silent_at(coverage: Coverage, border: int) -> bool:
    return any(
        hole.confirmed and border in (hole.start, hole.end)
        for known in coverage.by_series.values()
        for hole in known.holes
    )


def _settling(settled: Mapping[Series, Intervals]) -> Callable[[RawPartition], RawPartition]:
    def change(before: RawPartition) -> RawPartition:
        coverage = before.coverage
        for series, proven in settled.items():
            known = coverage.of(series)
            # Another run may have written since: only what is silent still is settled.
            silent = (hole.interval for hole in known.holes if hole.confirmed)
            coverage = coverage.updated(series, known.settle(intersection(silent, proven)))
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
