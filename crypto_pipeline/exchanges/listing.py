"""When a symbol's trading began and ended, by the exchange's own candles: the day, then the minute.

Asked for where an exchange answers with no candle at all: before its listing a symbol has none, and
after its delisting neither, and both must be told from candles that are lost.
"""

from __future__ import annotations

from typing import Final

from crypto_pipeline.core.answers import observations_of
from crypto_pipeline.core.coverage import Series, TradingLife
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.planning import reach
from crypto_pipeline.core.rules import columns_of, first_broken, times_ms
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, timeframe_ms, utc
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

_DAILY: Final = "1d"
#: How the first and the last instant of a day's trading are found: each inside one of the one before.
_FINER: Final = ("1h", "1m")
#: So many candles beside it must be silent in the answer that holds the first, or the last, one.
_SILENT: Final = 6
#: Pages of daily candles to look through before giving up: ten years at the smallest page.
_MOST_PAGES: Final = 20


async def trading_life(exchange: ExchangeWrapper, symbol: str, *, since: int) -> TradingLife:
    """The symbol's trading life from ``since`` on, as far as the exchange's candles tell it.

    Each end is taken from one answer that holds candles on its one side and none on the other.

    Raises:
        ExchangeError: a request failed; nothing is known then.
    """
    if not exchange.serves(_DAILY):
        return TradingLife(evidence=f"{exchange.key} has no daily candles to look at")
    if exchange.habits.history is not None and not exchange.habits.trades:
        return TradingLife(evidence=f"{exchange.key}'s oldest candle is not the symbol's first")
    # Daily candles of a page of 1m candles: some exchanges count the span, not the rows.
    span = min(exchange.habits.page, 300) * DAY_MS
    oldest = max(
        since // DAY_MS * DAY_MS,
        reach(exchange.now, timeframe=_DAILY, habits=exchange.habits),
    )
    end = exchange.now // DAY_MS * DAY_MS + DAY_MS
    opens = closes = None
    begins = await _first_day(exchange, symbol, oldest, end, span)
    if begins is not None and begins >= oldest:
        opens = await _narrowed(exchange, symbol, begins, newest=False)
    if exchange.trades_now(symbol) is False:
        # Without a candle since then it may have ended before.
        earliest = max(0, oldest - _MOST_PAGES * span) if begins is None else max(begins, oldest)
        ends = await _last_day(exchange, symbol, earliest, end, span)
        closes = None if ends is None else await _narrowed(exchange, symbol, ends, newest=True)
    known = []
    if opens is not None:
        known.append(f"its first candle at {exchange.key} is of {utc(opens.start):%Y-%m-%d %H:%MZ}")
    if closes is not None:
        known.append(
            f"its last candle at {exchange.key} ends {utc(closes.end):%Y-%m-%d %H:%MZ}, and it is"
            " listed there as not trading"
        )
    return TradingLife(
        first=None if opens is None else opens.start,
        last=None if closes is None else closes.end,
        evidence="; ".join(known) or f"daily candles of {exchange.key} show no end of it",
        exact=all(each is None or each.end - each.start == MINUTE_MS for each in (opens, closes)),
    )


async def _first_day(
    exchange: ExchangeWrapper, symbol: str, start: int, end: int, span: int
) -> int | None:
    """The first day with a candle, one before ``start`` if it is older; None where unknown."""
    half = span // DAY_MS // 2 * DAY_MS
    for cursor in range(start, min(end, start + _MOST_PAGES * span), span):
        days = await _times(exchange, symbol, _DAILY, Interval(cursor, min(end, cursor + span)))
        if not days:
            continue
        # Once more, with silence before it in the same answer: an empty page proves nothing.
        around = Interval(max(0, days[0] - half), min(end, days[0] + half))
        again = await _times(exchange, symbol, _DAILY, around)
        if not again or days[0] not in again:
            return None
        return again[0] if again[0] == days[0] or again[0] < start else None
    return None


async def _last_day(
    exchange: ExchangeWrapper, symbol: str, first: int, end: int, span: int
) -> int | None:
    """The last day with a candle; None until a whole day without one has passed."""
    half = span // DAY_MS // 2 * DAY_MS
    cursor = end
    for _ in range(_MOST_PAGES):
        window = Interval(max(first, cursor - span), cursor)
        days = await _times(exchange, symbol, _DAILY, window)
        if days:
            last = days[-1]
            if last + 3 * DAY_MS > end:  # the exchange, or the symbol, may be halted
                return None
            around = Interval(max(first, last - half), min(end, last + half))
            again = await _times(exchange, symbol, _DAILY, around)
            return last if again and again[-1] == last else None
        if window.start == first:
            return None
        cursor = window.start
    return None


async def _narrowed(
    exchange: ExchangeWrapper, symbol: str, day: int, *, newest: bool
) -> Interval | None:
    """A day's first candle, or its newest one: to the minute where that is served.

    None where answers contradict one another.
    """
    span = Interval(day, day + DAY_MS)
    for timeframe in _FINER:
        served = reach(exchange.now, timeframe=timeframe, habits=exchange.habits)
        if not exchange.serves(timeframe) or span.start < served:
            break
        length = timeframe_ms(timeframe)
        beside = _SILENT * length
        window = Interval(span.start - (not newest) * beside, span.end + newest * beside)
        times = await _times(exchange, symbol, timeframe, window)
        if not times or times[-1 if newest else 0] not in span:
            return None
        edge = times[-1 if newest else 0]
        span = Interval(edge, edge + length)
    return span


async def _times(
    exchange: ExchangeWrapper, symbol: str, timeframe: str, window: Interval
) -> list[int]:
    """When the conforming candles of a window open, ascending, ms."""
    answer = await exchange.fetch(Series(symbol, timeframe), window)
    rows = observations_of(answer, run_id="", settle_ms=0)
    times = times_ms(rows["open_time"])[first_broken(columns_of(rows)) < 0]
    return sorted({time for time in times.tolist() if time in window})
