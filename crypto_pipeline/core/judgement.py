"""The verdict on one answer. Apart from what finds it, since definitions need no data frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from crypto_pipeline.core.intervals import Interval, Intervals, intersect


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One answer's verdict on the final part of its window; the three parts make up all of it.

    Attributes:
        settled: a candle came that keeps the rules, or its absence is proven.
        rejected: a row came that broke one, or one that may stand for any of these.
        silent: nothing came.
        empty: the answer held no candle of the whole window.
        note: the rules that were broken.
    """

    settled: Intervals
    rejected: Intervals
    silent: Intervals
    empty: bool
    note: str = ""

    def within(self, bounds: Interval) -> Self:
        """The part of the verdict about a part of the window."""
        return replace(
            self,
            settled=intersect(self.settled, bounds),
            rejected=intersect(self.rejected, bounds),
            silent=intersect(self.silent, bounds),
        )
