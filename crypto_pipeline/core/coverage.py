"""What was asked of an exchange for one partition, and what came of it.

Kept in the same file as the observations, so that the two cannot disagree. "Asked, and the exchange
had none" and "never asked" are different facts: rows alone cannot tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from crypto_pipeline.core.intervals import Interval, Intervals, subtract, union


class Series(NamedTuple):
    """One series of candles of an exchange."""

    symbol: str
    timeframe: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A part of a partition whose last request failed. Times in ms, our clock."""

    start: int
    end: int
    at: int
    error: str
    attempts: int = 1

    @property
    def interval(self) -> Interval:
        """The part of the partition it is about."""
        return Interval(self.start, self.end)


@dataclass(frozen=True, kw_only=True)
class SeriesCoverage:
    """``settled``: asked, answered and final; ``failures``: asked in vain and not answered since.

    ``answered_at``: when the newest answer came, ms, our clock.
    """

    settled: Intervals = ()
    failures: tuple[Failure, ...] = ()
    answered_at: int | None = None

    def answered(self, window: Interval, *, settled_before: int, at: int) -> Self:
        """After an answer to ``window``, of which everything before that instant is final."""
        settled = Interval(window.start, min(window.end, settled_before))
        failures = tuple(
            replace(failure, start=left.start, end=left.end)
            for failure in self.failures
            for left in subtract([failure.interval], [window])
        )
        return replace(
            self,
            settled=union([*self.settled, settled]),
            failures=failures,
            answered_at=max(at, self.answered_at or at),
        )

    def failed(self, window: Interval, *, at: int, error: str) -> Self:
        """After a request for ``window`` failed; what was settled before stays so."""
        attempts = 1 + max(
            (f.attempts for f in self.failures if f.start < window.end and window.start < f.end),
            default=0,
        )
        older = tuple(
            replace(failure, start=left.start, end=left.end)
            for failure in self.failures
            for left in subtract([failure.interval], [window])
        )
        new = tuple(
            Failure(start=left.start, end=left.end, at=at, error=error[:500], attempts=attempts)
            for left in subtract([window], self.settled)
        )
        return replace(self, failures=tuple(sorted(older + new, key=lambda f: f.start)))


@dataclass(frozen=True)
class Coverage:
    """Coverage of one partition, by series. A series that was never asked for is absent."""

    by_series: Mapping[Series, SeriesCoverage] = field(default_factory=dict)

    def of(self, series: Series) -> SeriesCoverage:
        """The series's coverage; an empty one if it was never asked for."""
        return self.by_series.get(series, SeriesCoverage())

    def updated(self, series: Series, coverage: SeriesCoverage) -> Self:
        """The same with one series's coverage replaced."""
        return replace(self, by_series={**self.by_series, series: coverage})

    def to_json(self) -> str:
        """Compact JSON, stable in order."""
        return json.dumps(
            [
                {
                    "symbol": series.symbol,
                    "timeframe": series.timeframe,
                    "settled": coverage.settled,
                    "answered_at": coverage.answered_at,
                    "failures": [vars(failure) for failure in coverage.failures],
                }
                for series, coverage in sorted(self.by_series.items())
            ],
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`."""
        entries: list[dict[str, Any]] = json.loads(text)
        return cls(
            {
                Series(entry["symbol"], entry["timeframe"]): SeriesCoverage(
                    settled=tuple(Interval(*pair) for pair in entry["settled"]),
                    failures=tuple(Failure(**failure) for failure in entry["failures"]),
                    answered_at=entry["answered_at"],
                )
                for entry in entries
            }
        )
