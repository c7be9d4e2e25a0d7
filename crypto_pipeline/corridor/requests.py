"""What a run asks an exchange for, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import DAY_MS, day_of
from crypto_pipeline.errors import CryptoPipelineError


def days_of(window: Interval) -> Iterator[date]:
    """The UTC days it touches."""
    for start in range(window.start // DAY_MS * DAY_MS, window.end, DAY_MS):
        yield day_of(start)


@dataclass(frozen=True)
class Request:
    """One window of one series, planned."""

    series: Series
    window: Interval

    @property
    def days(self) -> Iterator[date]:
        """The partitions it touches."""
        return days_of(self.window)


@dataclass(frozen=True)
class TradeRequest:
    """A stretch of one symbol to build from trades; ``spans`` by timeframe."""

    symbol: str
    spans: dict[str, Interval]

    @property
    def window(self) -> Interval:
        """From the first span's start to the last one's end."""
        spans = self.spans.values()
        return Interval(min(span.start for span in spans), max(span.end for span in spans))

    @property
    def days(self) -> Iterator[date]:
        """The partitions it touches."""
        return days_of(self.window)


@dataclass(frozen=True)
class FailedRequest:
    """A window that failed for good in this run; ``asked`` is false where it was not even tried."""

    series: Series
    window: Interval
    error: CryptoPipelineError
    at: int
    asked: bool = True
