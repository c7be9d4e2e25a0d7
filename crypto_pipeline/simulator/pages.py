"""Pages of candles as bytes, cut from rendered blocks that are kept in memory.

A block is a fixed span of one series' final candles in an exchange's own format. History never
changes, so a repeated page costs two binary searches and a copy. Memory is bounded: the least
recently used blocks go first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from crypto_pipeline.core.timeframes import DAY_MS
from crypto_pipeline.simulator.truth import Series
from crypto_pipeline.simulator.truth.candles import Candles, Ints
from crypto_pipeline.simulator.wire import Buffer

# Renders candles of a series: all rows' bytes, each row ending in a comma, and the row starts.
RenderRows = Callable[[Series, Candles, int], tuple[bytes, Ints]]

_BLOCK_ROWS = 1_440
_LONGEST_BLOCK_MS = 30 * DAY_MS
_BYTES_PER_ROW_INDEX = 16  # a time and a start


@dataclass(frozen=True, slots=True)
class Block:
    """Rendered rows of one span, ascending in time."""

    times: array[int]
    starts: array[int]
    data: bytes

    def rows(self, first: int, end: int, *, newest_first: bool) -> Buffer:
        """Rows ``first`` … ``end - 1``, joined by commas."""
        starts = self.starts
        if not newest_first:
            return memoryview(self.data)[starts[first] : starts[end] - 1]
        return b",".join(
            self.data[starts[row] : starts[row + 1] - 1] for row in range(end - 1, first - 1, -1)
        )

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return len(self.data) + _BYTES_PER_ROW_INDEX * len(self.times)


@dataclass(slots=True)
class Page:
    """Consecutive rows: runs of joined rows, and the open times of the oldest and newest row."""

    runs: list[Buffer] = field(default_factory=list)
    count: int = 0
    first: int | None = None
    last: int | None = None


@dataclass(slots=True)
class BlockCache:
    """Blocks of all exchanges, at most ``limit_bytes`` of them."""

    limit_bytes: int
    used_bytes: int = 0
    _blocks: OrderedDict[tuple[str, str, int, int], Block] = field(default_factory=OrderedDict)

    def get(self, series: Series, timeframe_ms: int, number: int, render: RenderRows) -> Block:
        """Block ``number`` of a series, rendered if it is not in memory."""
        key = (series.exchange, series.symbol, timeframe_ms, number)
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
            return block
        span = block_ms(timeframe_ms)
        candles = series.candles(timeframe_ms, number * span, (number + 1) * span)
        data, starts = render(series, candles, timeframe_ms)
        block = Block(_packed(candles.time), _packed(starts), data)
        self._blocks[key] = block
        self.used_bytes += block.size
        while self.used_bytes > self.limit_bytes and len(self._blocks) > 1:
            self.used_bytes -= self._blocks.popitem(last=False)[1].size
        return block


def _packed(numbers: Ints) -> array[int]:
    """Integers that bisect reads without numpy's cost a look-up."""
    return array("q", numbers.astype(np.int64).tobytes())


def block_ms(timeframe_ms: int) -> int:
    """Span of a block: about a day of 1m candles, and never so long that building it shows."""
    return min(_BLOCK_ROWS * timeframe_ms, _LONGEST_BLOCK_MS)


@dataclass(frozen=True, slots=True)
class Pager:
    """Pages of one series and timeframe."""

    cache: BlockCache
    series: Series
    timeframe_ms: int
    render: RenderRows
    newest_first: bool

    def oldest(self, start_ms: int, end_ms: int, limit: int) -> Page:
        """The first ``limit`` final candles that open in ``[start_ms, end_ms)``."""
        page = Page()
        for block in self._blocks(start_ms, end_ms, backwards=False):
            first = bisect_left(block.times, start_ms)
            end = min(bisect_left(block.times, end_ms), first + limit - page.count)
            self._add(page, block, first, end)
            if page.count >= limit:
                break
        return page

    def newest(self, start_ms: int, end_ms: int, limit: int) -> Page:
        """The last ``limit`` final candles that open in ``[start_ms, end_ms)``."""
        page = Page()
        for block in self._blocks(start_ms, end_ms, backwards=True):
            end = bisect_left(block.times, end_ms)
            first = max(bisect_left(block.times, start_ms), end - (limit - page.count))
            self._add(page, block, first, end)
            if page.count >= limit:
                break
        return page

    def _add(self, page: Page, block: Block, first: int, end: int) -> None:
        if first >= end:
            return
        run = block.rows(first, end, newest_first=self.newest_first)
        oldest, newest = block.times[first], block.times[end - 1]
        later = page.last is None or oldest > page.last
        page.runs.insert(len(page.runs) if later != self.newest_first else 0, run)
        page.count += end - first
        page.first = oldest if page.first is None else min(page.first, oldest)
        page.last = newest if page.last is None else max(page.last, newest)

    def _blocks(self, start_ms: int, end_ms: int, *, backwards: bool) -> Iterator[Block]:
        listed, delisted = self.series.source.span
        start_ms = max(start_ms, listed // self.timeframe_ms * self.timeframe_ms)
        end_ms = min(end_ms, delisted)
        if start_ms >= end_ms:
            return
        span = block_ms(self.timeframe_ms)
        numbers = range(start_ms // span, -(-end_ms // span))
        for number in reversed(numbers) if backwards else numbers:
            yield self.cache.get(self.series, self.timeframe_ms, number, self.render)
