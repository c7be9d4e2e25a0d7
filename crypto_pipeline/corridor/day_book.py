"""What came in during a run and is not yet written: rows and findings, sorted by partition.

Answers are parsed many at once, since building a frame costs more than reading a page's numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date

import pandas as pd

from crypto_pipeline.core.answers import Answer, observations_of_all
from crypto_pipeline.core.candles import OBSERVATION_DTYPES, concat, empty_observations
from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife, bridged
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.intervals import Interval, intersect, subtract
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.judging import judge_answers, outages
from crypto_pipeline.core.routing import UNASKED, home_days
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, day_of, day_start_ms, timeframe_ms
from crypto_pipeline.corridor.requests import FailedRequest, days_of
from crypto_pipeline.corridor.trade_history import TradeCandles

_Change = Callable[[SeriesCoverage], SeriesCoverage]


@dataclass
class _Page:
    """What is to be written to one partition."""

    frames: list[pd.DataFrame] = field(default_factory=list)
    changes: list[tuple[Series, _Change]] = field(default_factory=list)


class DayBook:
    """Rows and findings of one exchange, until their partitions are written.

    Args:
        habits: the exchange's.
        lives: of symbols, as they become known; partitions written from then on say so.
        run_id: for provenance.
    """

    def __init__(self, habits: Habits, lives: Mapping[str, TradingLife], *, run_id: str) -> None:
        self._habits = habits
        self._lives = lives
        self._run_id = run_id
        self.waiting_rows = 0  # of answers not yet parsed
        self._answers: list[Answer] = []
        self._pages: defaultdict[date, _Page] = defaultdict(_Page)
        self._newest: dict[Series, int] = {}
        self._now = 0  # the exchange's clock when it last answered

    def answer(self, answer: Answer) -> None:
        """Keep an answer.

        Answers of a series are told apart by when they came: two of one millisecond get two.
        """
        series = Series(answer.symbol, answer.timeframe)
        late = self._newest.get(series, 0) + 1 - answer.fetched_at
        if late > 0:
            answer = replace(
                answer,
                fetched_at=answer.fetched_at + late,
                clock_offset_ms=answer.clock_offset_ms - late,
            )
        self._newest[series] = answer.fetched_at
        self._now = max(self._now, answer.exchange_now)
        self._answers.append(answer.read())
        self.waiting_rows += answer.size

    def failure(self, failed: FailedRequest) -> None:
        """Note a window that failed, in every partition it touches."""
        for day in days_of(failed.window):
            for part in intersect([failed.window], _bounds(day)):
                self._note(day, failed.series, _failed(part, failed))

    def not_asked(self, series: Series, window: Interval) -> None:
        """Note a window that lies outside its symbol's life: partitions say so all the same."""
        for day in days_of(window):
            self._note(day, series, lambda known: known)

    def not_listed(self, day: date, series: Series, life: TradingLife) -> None:
        """Note what another partition knows: that this one begins before its symbol's first candle."""
        begun = replace(life, last=None)
        self._note(day, series, lambda known: replace(known, life=known.life or begun))

    def trades(self, built: TradeCandles) -> list[date]:
        """Keep candles built from trades; the partitions they touch."""
        days = times_ms(built.observations["open_time"]) // DAY_MS
        for number in dict.fromkeys(days.tolist()):
            rows = built.observations[days == number].reset_index(drop=True)
            self._pages[day_of(number * DAY_MS)].frames.append(rows)
        touched = set()
        for timeframe, covered in built.added.items():
            for day in days_of(covered):
                touched.add(day)
                for part in intersect([covered], _bounds(day)):
                    self._note(day, Series(built.symbol, timeframe), _traded(part, built.at))
        return sorted(touched)

    def parse(self) -> list[tuple[Answer, Judgement]]:
        """Sort the answers since the last call into partitions; what each settles."""
        answers, self._answers, self.waiting_rows = self._answers, [], 0
        if not answers:
            return []
        habits = self._habits
        frame = observations_of_all(answers, run_id=self._run_id, settle_ms=habits.settle_ms)
        judged = list(
            zip(
                answers,
                judge_answers(answers, frame, quiet=habits.quiet, settle_ms=habits.settle_ms),
                strict=True,
            )
        )
        days = home_days(times_ms(frame["open_time"]), answers, extra_rows=habits.extra_rows)
        for number in dict.fromkeys(days.tolist()):
            if number != UNASKED:
                rows = frame[days == number].reset_index(drop=True)
                self._pages[day_of(number * DAY_MS)].frames.append(rows)
        for answer, judgement in judged:
            series = Series(answer.symbol, answer.timeframe)
            served = Interval(max(answer.window.start, self._reach(answer)), answer.window.end)
            for day in days_of(answer.window):
                for part in intersect([served], _bounds(day)):
                    self._note(day, series, _answered(part, judgement, answer.fetched_at))
        return judged

    def rows(self, day: date) -> pd.DataFrame:
        """The partition's new rows, taken out of the book."""
        frames, self._pages[day].frames = self._pages[day].frames, []
        if not frames:
            return empty_observations()
        return frames[0] if len(frames) == 1 else concat(frames, OBSERVATION_DTYPES)

    def findings(self, day: date) -> Callable[[Coverage], Coverage] | None:
        """The partition's new findings, taken out of the book, as a change of its coverage."""
        changes, self._pages[day].changes = self._pages[day].changes, []
        if not changes:
            return None

        def change(coverage: Coverage) -> Coverage:
            for series, each in changes:
                coverage = coverage.updated(series, each(coverage.of(series)))
            return proven(self._with_lives(coverage, day), self._habits, _bounds(day))

        return change

    def _with_lives(self, coverage: Coverage, day: date) -> Coverage:
        for series, known in coverage.by_series.items():
            life = self._lives.get(series.symbol)
            if life is not None and (known.holes or not known.settled):
                # Trading that was halted may go on before the day is over.
                last = life.last if _bounds(day).end <= self._now else None
                life = _in_candles(replace(life, last=last), timeframe_ms(series.timeframe))
                coverage = coverage.updated(series, replace(known, life=life))
        return coverage

    def _note(self, day: date, series: Series, change: _Change) -> None:
        self._pages[day].changes.append((series, change))

    def _reach(self, answer: Answer) -> int:
        """How far back the exchange served when it answered; the plan may be a minute older."""
        history = self._habits.history
        if history is None:
            return answer.window.start
        length = timeframe_ms(answer.timeframe)
        # One candle less: the exchange's clock is known by its lower bound, and may be a minute on.
        return answer.exchange_now // length * length - (history - 1) * length


def proven(coverage: Coverage, habits: Habits, bounds: Interval) -> Coverage:
    """The coverage of a partition with what all of it together proves."""
    for series, known in coverage.by_series.items():
        if known.life is not None and known.holes:
            life = known.life.within(bounds, known)
            coverage = coverage.updated(series, replace(known, life=life))
    if habits.quiet == "omitted":
        for series, known in coverage.by_series.items():
            if known.holes:
                coverage = coverage.updated(series, bridged([known])[0])
    elif habits.quiet == "filled":
        for timeframe in {series.timeframe for series in coverage.by_series}:
            coverage = _with_outages(coverage, timeframe, bounds)
    return coverage


def _in_candles(life: TradingLife, length: int) -> TradingLife:
    """The life in whole candles: its first one's start, its last one's end."""
    return replace(
        life,
        first=None if life.first is None else life.first // length * length,
        last=None if life.last is None else -(-life.last // length) * length,
    )


def _with_outages(coverage: Coverage, timeframe: str, bounds: Interval) -> Coverage:
    group = {s: known for s, known in coverage.by_series.items() if s.timeframe == timeframe}
    found = outages(
        [
            [(hole.interval, hole.attempts) for hole in known.holes if hole.confirmed]
            for known in group.values()
        ],
        [known.settled for known in group.values()],
        bounds=bounds,
    )
    if found:
        for series, known in group.items():
            coverage = coverage.updated(series, known.settle(found, outage=True))
    return coverage


def _bounds(day: date) -> Interval:
    return Interval(day_start_ms(day), day_start_ms(day) + DAY_MS)


def _answered(part: Interval, judgement: Judgement, at: int) -> _Change:
    return lambda known: known.answered(part, judgement.within(part), at=at)


def _failed(part: Interval, failed: FailedRequest) -> _Change:
    return lambda known: known.failed(
        part, at=failed.at, error=str(failed.error), permanent=not failed.error.rerun_helps
    )


def _traded(part: Interval, at: int) -> _Change:
    return lambda known: known.traded(part, at=at)


def unsettled(coverage: SeriesCoverage, wanted: Interval) -> bool:
    """Whether anything of the interval is not settled."""
    return bool(subtract([wanted], coverage.settled))
