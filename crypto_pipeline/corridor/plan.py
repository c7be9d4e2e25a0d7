"""All requests of a run: what each series of an exchange lacks in a range of partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.intervals import Interval, Intervals, intersect, subtract, union
from crypto_pipeline.core.planning import plan_trades, plan_windows
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.corridor.requests import Request, TradeRequest

#: The holes of a series to leave alone at an instant of our clock, ms.
Resting = Callable[[SeriesCoverage, int], Intervals]


def plan_requests(
    coverage: Mapping[date, Coverage],
    *,
    series: Sequence[Series],
    habits: Habits,
    exchange_now: int,
    our_now: int,
    reread: int,
    resting: Resting,
) -> list[Request | TradeRequest]:
    """The requests, oldest first; those of one time in the order of ``series``.

    Args:
        coverage: of the run's partitions.
        series: those configured.
        habits: the exchange's.
        exchange_now: its clock, ms.
        our_now: ours, ms.
        reread: closed candles before the forming one to ask for again.
        resting: the holes of a series to leave alone at an instant of our clock.
    """
    spans = union((day_start_ms(day), day_start_ms(day) + DAY_MS) for day in coverage)
    requests: list[Request | TradeRequest] = []
    trades: dict[str, dict[str, Intervals]] = {}
    for each in series:
        known = over(coverage, each)
        rest = resting(known, our_now)
        for span in spans:
            windows = plan_windows(
                wanted=span,
                coverage=known,
                timeframe=each.timeframe,
                now=exchange_now,
                habits=habits,
                reread=reread,
                resting=rest,
            )
            requests += (Request(each, window) for window in windows)
            built = plan_trades(
                wanted=span,
                coverage=known,
                timeframe=each.timeframe,
                now=exchange_now,
                habits=habits,
                resting=rest,
            )
            of_symbol = trades.setdefault(each.symbol, {})
            of_symbol[each.timeframe] = (*of_symbol.get(each.timeframe, ()), *built)
    for symbol, by_timeframe in trades.items():
        requests += _trade_requests(symbol, by_timeframe)
    return sorted(requests, key=lambda request: request.window.start)


def _trade_requests(symbol: str, wanted: Mapping[str, Intervals]) -> list[TradeRequest]:
    """One request for each stretch of trades, which serve all timeframes at once."""
    requests = []
    for stretch in union(span for spans in wanted.values() for span in spans):
        parts = {timeframe: intersect(spans, stretch) for timeframe, spans in wanted.items()}
        whole = {
            timeframe: Interval(each[0].start, each[-1].end)
            for timeframe, each in parts.items()
            if each
        }
        requests.append(TradeRequest(symbol, whole))
    return requests


def before_listing(
    coverage: Mapping[date, Coverage], series: Sequence[Series]
) -> Iterator[tuple[date, Series, TradingLife]]:
    """Partitions that begin before a symbol's first candle and do not know it, as others do.

    Nothing is asked of them, so no answer would tell them.
    """
    for one in series:
        unaware = [day for day, known in coverage.items() if known.of(one).life is None]
        if not 0 < len(unaware) < len(coverage):
            continue
        merged = over(coverage, one).life
        if merged is None or merged.first is None:
            continue
        lives = (known.of(one).life for known in coverage.values())
        life = next(each for each in lives if each is not None and each.first == merged.first)
        yield from ((day, one, life) for day in unaware if day_start_ms(day) < merged.first)


def over(coverage: Mapping[date, Coverage], series: Series) -> SeriesCoverage:
    """What is known of a series over all partitions of a run.

    A first candle with others before it is none: what is silent there is asked for again.
    A symbol has ended where every later partition says so: trading that was halted may go on.
    """
    days = sorted(coverage)
    known = [coverage[day].of(series) for day in days]
    lives = [each.life for each in known if each.life is not None]
    first = min((life.first for life in lives if life.first is not None), default=None)
    if first is not None:
        begun = (  # outages are settled, and silence where trades are read: there are no candles in them
            interval.start
            for each in known
            for interval in subtract(each.settled, [*each.outages, *each.by_trades])
        )
        if min(begun, default=first) < first:
            first = None
    last = max((life.last for life in lives if life.last is not None), default=None)
    if last is not None and any(
        each.life is None or each.life.last is None
        for day, each in zip(days, known, strict=True)
        if day_start_ms(day) + DAY_MS > last
    ):
        last = None
    return SeriesCoverage(
        settled=union(interval for each in known for interval in each.settled),
        holes=tuple(hole for each in known for hole in each.holes),
        life=replace(lives[-1], first=first, last=last) if lives else None,
    )
