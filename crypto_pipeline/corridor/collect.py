"""Exchange → raw zone: ask for what a range of partitions lacks, and keep every answer.

Serves the minute tick (one day, a window a series) and a backfill run (a month, hundreds of
windows) alike. Answers are written day by day as soon as a day has all of its windows, so memory
does not grow with the range and a run that dies leaves what it got.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

import pandas as pd

from crypto_pipeline.core.answers import Answer, observations_of_all, settled_before
from crypto_pipeline.core.candles import OBSERVATION_DTYPES, concat
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.intervals import Interval, Intervals, intersect, union
from crypto_pipeline.core.observations import merge
from crypto_pipeline.core.planning import plan_windows
from crypto_pipeline.core.routing import UNASKED, home_days
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, timeframe_ms
from crypto_pipeline.errors import (
    CollectionFailed,
    CryptoPipelineError,
    ExchangeBlocked,
    ExchangeError,
    RequestRefused,
)
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline.lake.zones import RawPartition, RawZone

#: After so many windows in a row failed, with no answer between, an exchange is left alone.
GIVE_UP_AFTER: Final = 8


@dataclass(frozen=True)
class Request:
    """One window of one series, planned."""

    series: Series
    window: Interval

    @property
    def days(self) -> Iterator[date]:
        """The partitions it touches."""
        for start in range(self.window.start // DAY_MS * DAY_MS, self.window.end, DAY_MS):
            yield day_of(start)


@dataclass(frozen=True)
class FailedRequest:
    """A request that failed for good in this run."""

    request: Request
    error: ExchangeError
    at: int


@dataclass(frozen=True, kw_only=True)
class CollectedDay:
    """What a run did to one partition."""

    requests: int
    rows: int
    observations: int
    failed: tuple[FailedRequest, ...]
    not_asked: int


@dataclass
class Collected:
    """What a run did, by partition. ``not_asked``: requests left out after it gave up."""

    days: dict[date, CollectedDay] = field(default_factory=dict)
    failed: list[FailedRequest] = field(default_factory=list)
    answered: int = 0
    not_asked: int = 0


class Collection:
    """One run's collection from one exchange.

    Args:
        exchange: asked for windows.
        zone: keeps the answers.
        days: the partitions, any order.
        run_id: for provenance.
        reread: closed candles before the forming one to ask for again.
        on_day: told of each partition as it is written.
    """

    def __init__(
        self,
        *,
        exchange: ExchangeWrapper,
        zone: RawZone,
        days: Sequence[date],
        run_id: str,
        reread: int = 0,
        on_day: Callable[[date, CollectedDay], None] = lambda day, collected: None,
    ) -> None:
        self._exchange = exchange
        self._zone = zone
        self._days = sorted(day for day in set(days) if day >= exchange.config.start)
        self._run_id = run_id
        self._reread = reread
        self._on_day = on_day
        self._result = Collected()
        self._answers: list[Answer] = []
        self._left_over: pd.DataFrame | None = None
        self._left_over_days = pd.Series([], dtype="int64")
        self._covered: list[tuple[Request, Answer | FailedRequest]] = []
        self._planned: Counter[date] = Counter()
        self._written: set[date] = set()
        self._refused: set[Series] = set()
        self._failures_in_a_row = 0
        self._gave_up = False

    async def run(self) -> Collected:
        """Ask, and write what came.

        Raises:
            CollectionFailed: requests were needed and not one was answered. What failed is on
                record in the raw zone all the same.
            LakeError: the raw zone cannot be read or written.
        """
        try:
            await self._exchange.load_markets()
        except ExchangeError as error:
            raise self._markets_unknown(error) from None
        requests = self._plan()
        self._planned = Counter(day for request in requests for day in request.days)
        waiting = self._planned.copy()
        writing = asyncio.Lock()
        queue = iter(requests)

        async def work() -> None:
            for request in queue:
                await self._ask(request)
                waiting.subtract(request.days)
                async with writing:
                    for day in [day for day in self._days if waiting.get(day) == 0]:
                        del waiting[day]
                        await self._write(day)

        workers = min(self._exchange.config.concurrency, len(requests))
        failed: CryptoPipelineError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(work())
        except* CryptoPipelineError as errors:
            failed = _first(errors)
        if failed is not None:
            raise failed
        if requests and not self._result.answered:
            raise self._nothing_answered(len(requests))
        return self._result

    def _plan(self) -> list[Request]:
        """The requests of the range, oldest first; the series of one time in configured order."""
        coverage = {day: self._zone.read(self._exchange.key, day).coverage for day in self._days}
        spans = union((day_start_ms(day), day_start_ms(day) + DAY_MS) for day in self._days)
        requests = [
            Request(series, window)
            for series in self._exchange.config.series
            for span in spans
            for window in plan_windows(
                wanted=span,
                settled=_settled(coverage, series),
                timeframe=series.timeframe,
                now=self._exchange.now,
                page=self._exchange.habits.page,
                reread=self._reread,
                history=self._exchange.habits.history,
            )
        ]
        return sorted(requests, key=lambda request: request.window.start)

    async def _ask(self, request: Request) -> None:
        if self._gave_up or request.series in self._refused:
            self._result.not_asked += 1
            return
        try:
            answer = await self._exchange.fetch(request.series, request.window)
        except ExchangeError as error:
            failed = FailedRequest(request, error, self._exchange.our_now)
            self._result.failed.append(failed)
            self._covered.append((request, failed))
            if isinstance(error, RequestRefused):
                self._refused.add(request.series)
            else:
                self._failures_in_a_row += 1
                self._gave_up = self._gave_up or (
                    isinstance(error, ExchangeBlocked) or self._failures_in_a_row >= GIVE_UP_AFTER
                )
            return
        self._failures_in_a_row = 0
        self._result.answered += 1
        self._answers.append(answer)
        self._covered.append((request, answer))

    async def _write(self, day: date) -> None:
        observations = self._observations_of(day)
        covered = [entry for entry in self._covered if day in entry[0].days]
        self._written.add(day)
        self._covered = [e for e in self._covered if not self._written.issuperset(e[0].days)]
        if covered:
            partition = await _to_its_end(
                self._zone.update,
                self._exchange.key,
                day,
                lambda before: RawPartition(
                    merge(before.observations, observations),
                    self._cover(before.coverage, day, covered),
                ),
            )
        else:
            partition = self._zone.read(self._exchange.key, day)
        collected = CollectedDay(
            requests=self._planned[day],
            rows=len(observations),
            observations=len(partition.observations),
            failed=tuple(entry for _, entry in covered if isinstance(entry, FailedRequest)),
            not_asked=self._planned[day] - len(covered),
        )
        self._result.days[day] = collected
        self._on_day(day, collected)

    def _observations_of(self, day: date) -> pd.DataFrame:
        """The rows of this partition among the answers so far; the others wait for theirs."""
        answers, self._answers = self._answers, []
        habits = self._exchange.habits
        frame = observations_of_all(answers, run_id=self._run_id, settle_ms=habits.settle_ms)
        days = pd.Series(
            home_days(times_ms(frame["open_time"]), answers, extra_rows=habits.extra_rows)
        )
        if self._left_over is not None:
            frame = concat([self._left_over, frame], OBSERVATION_DTYPES)
            days = pd.concat([self._left_over_days, days], ignore_index=True)
        number = day_start_ms(day) // DAY_MS
        others = (days != number) & (days != UNASKED)
        self._left_over = frame[others].reset_index(drop=True)
        self._left_over_days = days[others].reset_index(drop=True)
        return frame[days == number].reset_index(drop=True)

    def _cover(
        self,
        coverage: Coverage,
        day: date,
        covered: Sequence[tuple[Request, Answer | FailedRequest]],
    ) -> Coverage:
        bounds = Interval(day_start_ms(day), day_start_ms(day) + DAY_MS)
        for request, outcome in covered:
            known = coverage.of(request.series)
            for part in intersect([request.window], bounds):
                if isinstance(outcome, FailedRequest):
                    known = known.failed(part, at=outcome.at, error=str(outcome.error))
                else:
                    served = Interval(max(part.start, self._reach(outcome)), part.end)
                    before = settled_before(
                        outcome.exchange_now,
                        timeframe=outcome.timeframe,
                        settle_ms=self._exchange.habits.settle_ms,
                    )
                    known = known.answered(served, settled_before=before, at=outcome.fetched_at)
            coverage = coverage.updated(request.series, known)
        return coverage

    def _reach(self, answer: Answer) -> int:
        """How far back the exchange served when it answered; the plan may have been a minute older."""
        history = self._exchange.habits.history
        if history is None:
            return answer.window.start
        length = timeframe_ms(answer.timeframe)
        # One candle less: the exchange's clock is known by its lower bound, and may be a minute on.
        return answer.exchange_now // length * length - (history - 1) * length

    def _markets_unknown(self, error: ExchangeError) -> CollectionFailed:
        config = self._exchange.config
        named = ", ".join(config.symbols[:10]) + (" …" if len(config.symbols) > 10 else "")
        return CollectionFailed(
            f"{error.message} So none of its symbols could be asked for: {named}.",
            hint=error.hint,
            rerun_helps=error.rerun_helps,
        )

    def _nothing_answered(self, planned: int) -> CollectionFailed:
        failed = self._result.failed
        series = dict.fromkeys(" ".join(each.request.series) for each in failed)
        named = ", ".join(list(series)[:10]) + (" …" if len(series) > 10 else "")
        return CollectionFailed(
            f"{self._exchange.key}: none of {planned} requests was answered, for {named}"
            f" ({self._result.not_asked} were not made after the first failures)."
            f" The first: {failed[0].error.message}",
            hint=failed[0].error.hint,
            rerun_helps=any(each.error.rerun_helps for each in failed),
        )


def _first(errors: BaseExceptionGroup[CryptoPipelineError]) -> CryptoPipelineError:
    """The first error of a group of groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _to_its_end(call: Callable[..., RawPartition], *arguments: Any) -> RawPartition:
    """Run a blocking call in a thread, and wait for its end even when cancelled.

    The partition's lock is let go of by who took it: a write must not go on without it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _settled(coverage: dict[date, Coverage], series: Series) -> Intervals:
    return union(
        interval for partition in coverage.values() for interval in partition.of(series).settled
    )
