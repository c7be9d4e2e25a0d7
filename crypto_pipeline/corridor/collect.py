"""Exchange → raw zone: ask for what a range of partitions lacks, and keep every answer.

Serves the minute tick (one day, a window a series), a backfill run (a month, hundreds of windows)
and the repair of gaps alike. Answers are written day by day as soon as a day has all of its
windows, so memory does not grow with the range and a run that dies leaves what it got.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any, Final

from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.observations import merge
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.corridor.bridging import bridge_days
from crypto_pipeline.corridor.collected import Collected, CollectedDay, OnDay
from crypto_pipeline.corridor.day_book import DayBook
from crypto_pipeline.corridor.failures import markets_unknown, nothing_answered
from crypto_pipeline.corridor.lives import Lives
from crypto_pipeline.corridor.plan import Resting, before_listing, over, plan_requests
from crypto_pipeline.corridor.requests import FailedRequest, Request, TradeRequest
from crypto_pipeline.corridor.trade_history import trade_candles
from crypto_pipeline.errors import (
    CryptoPipelineError,
    ExchangeBlocked,
    ExchangeError,
    RequestRefused,
)
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.lake.zones import RawPartition, RawZone

#: After so many windows in a row failed, with no answer between, an exchange is left alone.
GIVE_UP_AFTER: Final = 8

#: Rows of answers that wait to become columns, at most: those of a hostile exchange may be large.
_WAITING_ROWS: Final = 100_000


class Collection:
    """One run's collection from one exchange.

    Args:
        exchange: asked for windows.
        zone: keeps the answers.
        days: the partitions, any order.
        run_id: for provenance.
        reread: closed candles before the forming one to ask for again.
        resting: the holes of a series to leave alone now.
        on_day: told of each partition as it is written, and what it now holds, if anything was.
    """

    def __init__(
        self,
        *,
        exchange: ExchangeWrapper,
        zone: RawZone,
        days: Sequence[date],
        run_id: str,
        reread: int = 0,
        resting: Resting = lambda coverage, now: (),
        on_day: OnDay = lambda day, collected, partition: None,
    ) -> None:
        self._exchange = exchange
        self._zone = zone
        self._days = sorted(day for day in set(days) if day >= exchange.config.start)
        self._reread = reread
        self._resting = resting
        self._on_day = on_day
        self._run_id = run_id
        self._lives = Lives(exchange)
        self._book = DayBook(exchange.habits, self._lives.by_symbol, run_id=run_id)
        self._result = Collected()
        self._coverage: dict[date, Coverage] = {}
        self._refused: dict[Series, ExchangeError] = {}
        self._tried: dict[Series, asyncio.Event] = {}
        self._failures_in_a_row = 0
        self._gave_up: ExchangeError | None = None
        self._writing = asyncio.Lock()

    async def run(self) -> Collected:
        """Ask, and write what came.

        Raises:
            CollectionFailed: requests were needed and not one was answered. What failed is on
                record in the raw zone all the same.
            LakeError: the raw zone cannot be read or written.
        """
        found = {day: self._zone.summary(self._exchange.key, day) for day in self._days}
        self._coverage = {day: summary.coverage for day, summary in found.items()}
        self._result.days = {
            day: CollectedDay(observations=summary.observations) for day, summary in found.items()
        }
        unknown: ExchangeError | None = None
        try:
            await self._exchange.load_markets()
        except ExchangeError as error:
            self._gave_up = unknown = error
        before = dict(self._coverage)
        for day, series, life in before_listing(before, self._exchange.config.series):
            self._book.not_listed(day, series, life)
        requests = plan_requests(
            before,
            series=self._exchange.config.series,
            habits=self._exchange.habits,
            exchange_now=self._exchange.now,
            our_now=self._exchange.our_now,
            reread=self._reread,
            resting=self._resting,
        )
        await self._carry_out(requests)
        if self._exchange.habits.quiet == "omitted":
            await asyncio.to_thread(
                bridge_days,
                self._zone,
                self._exchange.key,
                self._exchange.config.series,
                before=before,
                after=self._coverage,
            )
        if unknown is not None:
            raise markets_unknown(self._exchange.config, unknown)
        if self._result.failed and not self._result.answered:
            raise nothing_answered(self._exchange.key, self._result.failed, len(requests))
        return self._result

    async def _carry_out(self, requests: Sequence[Request | TradeRequest]) -> None:
        """All requests, several at once; each partition is written when its last one is done."""
        planned = Counter(day for request in requests for day in request.days)
        for day, tally in self._result.days.items():
            tally.requests = planned[day]
        waiting = planned.copy()
        queue = iter(requests)

        async def work() -> None:
            for request in queue:
                await self._do(request)
                waiting.subtract(request.days)
                async with self._writing:
                    for day in [day for day in self._days if waiting.get(day) == 0]:
                        del waiting[day]
                        await self._finish(day)

        failed: CryptoPipelineError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._exchange.config.concurrency, len(requests))):
                    group.create_task(work())
        except* CryptoPipelineError as errors:
            failed = _first(errors)
        if failed is not None:
            raise failed
        for day in [day for day in self._days if not planned[day]]:
            await self._finish(day)

    async def _do(self, request: Request | TradeRequest) -> None:
        if isinstance(request, TradeRequest):
            await self._stream(request)
            return
        # The first request of a series goes alone: one that is refused is not made eight times.
        tried = self._tried.get(request.series)
        if tried is not None:
            await tried.wait()
            await self._ask(request.series, request.window)
            return
        tried = self._tried[request.series] = asyncio.Event()
        try:
            await self._ask(request.series, request.window)
        finally:
            tried.set()

    async def _ask(self, series: Series, window: Interval) -> None:
        before = self._gave_up or self._refused.get(series)
        if before is not None:
            self._note(FailedRequest(series, window, before, self._exchange.our_now, asked=False))
            return
        if self._lives.not_yet(series.symbol, window):
            self._book.not_asked(series, window)
            return
        try:
            answer = await self._exchange.fetch(series, window)
        except ExchangeError as error:
            self._note(FailedRequest(series, window, error, self._exchange.our_now))
            self._count(series, error)
            return
        self._failures_in_a_row = 0
        self._result.answered += 1
        self._book.answer(answer)
        if self._book.waiting_rows > _WAITING_ROWS:
            async with self._writing:
                await self._parse()

    async def _stream(self, request: TradeRequest) -> None:
        """Candles of one symbol from its trades, written as they come."""
        left = dict(request.spans)
        error = self._gave_up
        asked = error is None
        if error is None:
            try:
                async for built in trade_candles(
                    self._exchange, request.symbol, request.spans, run_id=self._run_id
                ):
                    self._failures_in_a_row = 0
                    self._result.answered += 1
                    for timeframe, covered in built.covered.items():
                        left[timeframe] = Interval(covered.end, left[timeframe].end)
                    async with self._writing:
                        for day in self._book.trades(built):
                            await self._write(day)
            except ExchangeError as failure:
                error = failure
        if error is None:
            return
        at = self._exchange.our_now
        for timeframe, span in left.items():
            series = Series(request.symbol, timeframe)
            if span.start < span.end:
                self._note(FailedRequest(series, span, error, at, asked=asked))
        if asked:
            self._count(Series(request.symbol, next(iter(left))), error)

    def _count(self, series: Series, error: ExchangeError) -> None:
        """Whether the exchange, or this series, is worth another request."""
        if isinstance(error, RequestRefused):
            self._refused[series] = error
            return
        self._failures_in_a_row += 1
        if isinstance(error, ExchangeBlocked) or self._failures_in_a_row >= GIVE_UP_AFTER:
            self._gave_up = self._gave_up or error

    def _note(self, failed: FailedRequest) -> None:
        self._result.failed.append(failed)
        for day in self._days:
            if failed.window.start < day_start_ms(day) + DAY_MS and (
                failed.window.end > day_start_ms(day)
            ):
                self._result.days[day].failed.append(failed)
        self._book.failure(failed)

    async def _finish(self, day: date) -> None:
        """The partition has all that this run asked for it."""
        partition = await self._write(day)
        self._on_day(day, self._result.days[day], partition)

    async def _parse(self) -> None:
        for answer, judgement in self._book.parse():
            if judgement.silent:
                series = Series(answer.symbol, answer.timeframe)
                await self._lives.look_up(answer, judgement, over(self._coverage, series))

    async def _write(self, day: date) -> RawPartition | None:
        await self._parse()
        rows = self._book.rows(day)
        findings = self._book.findings(day)
        tally = self._result.days.get(day, CollectedDay())
        tally.rows += len(rows)
        if day not in self._coverage or (findings is None and rows.empty):
            return None
        partition = await _to_its_end(
            self._zone.update,
            self._exchange.key,
            day,
            lambda before: RawPartition(
                merge(before.observations, rows),
                before.coverage if findings is None else findings(before.coverage),
            ),
            versioned=len(self._days) > 1,  # of a single one nobody asks whether it still stands
        )
        self._coverage[day] = partition.coverage
        tally.observations = len(partition.observations)
        return partition


def _first(errors: BaseExceptionGroup[CryptoPipelineError]) -> CryptoPipelineError:
    """The first error of a group of groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _to_its_end(
    call: Callable[..., RawPartition], *arguments: Any, **named: Any
) -> RawPartition:
    """Run a blocking call in a thread, and wait for its end even when cancelled.

    The partition's lock is let go of by who took it: a write must not go on without it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments, **named))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
