"""When a symbol's trading began and ended, by the exchange's own daily candles.

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
from crypto_pipeline.core.timeframes import DAY_MS, utc
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

_DAILY: Final = "1d"
#: Pages of daily candles to look through before giving up: ten years at the smallest page.
_MOST_PAGES: Final = 20


async def trading_life(exchange: ExchangeWrapper, symbol: str, *, since: int) -> TradingLife:
    """The symbol's trading life from ``since`` on, as far as daily candles tell it.

    Each end is taken from one answer that holds candles on its one side and none on the other.

    Raises:
        ExchangeError: a request failed; nothing is known then.
    """
    if not exchange.serves(_DAILY):
        return TradingLife(evidence=f"{exchange.key} has no daily candles to look at")
    # Daily candles of a page of 1m candles: some exchanges count the span, not the rows.
    span = min(exchange.habits.page, 300) * DAY_MS
    oldest = max(
        since // DAY_MS * DAY_MS,
        reach(exchange.now, timeframe=_DAILY, habits=exchange.habits),
    )
    end = exchange.now // DAY_MS * DAY_MS + DAY_MS
    first = await _first(exchange, symbol, oldest, end, span)
    last = None
    if first is not None and exchange.trades_now(symbol) is False:
        last = await _last(exchange, symbol, first, end, span)
    known = []
    if first is not None and first > oldest:
        known.append(f"its first daily candle at {exchange.key} is {utc(first):%Y-%m-%d}")
    if last is not None:
        known.append(
            f"its last daily candle at {exchange.key} is {utc(last - DAY_MS):%Y-%m-%d}, and it is"
            " listed there as not trading"
        )
    return TradingLife(
        first=first if first is not None and first > oldest else None,
        last=last,
        evidence="; ".join(known) or f"daily candles of {exchange.key} show no end of it",
    )


async def _first(
    exchange: ExchangeWrapper, symbol: str, start: int, end: int, span: int
) -> int | None:
    for cursor in range(start, min(end, start + _MOST_PAGES * span), span):
        days = await _days(exchange, symbol, Interval(cursor, min(end, cursor + span)))
        if not days:
            continue
        if days[0] == start:
            return start
        # Once more, with silence before it in the same answer: an empty page proves nothing.
        half = span // DAY_MS // 2 * DAY_MS
        around = Interval(max(start, days[0] - half), min(end, days[0] + half))
        again = await _days(exchange, symbol, around)
        return days[0] if again and again[0] == days[0] else None
    return None


async def _last(
    exchange: ExchangeWrapper, symbol: str, first: int, end: int, span: int
) -> int | None:
    """The end of the last day with a candle; None while the newest day has one."""
    cursor = end
    for _ in range(_MOST_PAGES):
        window = Interval(max(first, cursor - span), cursor)
        days = await _days(exchange, symbol, window)
        if days:
            last = days[-1] + DAY_MS
            if last >= end:
                return None
            half = span // DAY_MS // 2 * DAY_MS
            again = await _days(
                exchange, symbol, Interval(max(first, last - half), min(end, last + half))
            )
            return last if again and again[-1] + DAY_MS == last else None
        if window.start == first:
            return None
        cursor = window.start
    return None


async def _days(exchange: ExchangeWrapper, symbol: str, window: Interval) -> list[int]:
    """The days with a conforming candle, ascending, ms."""
    answer = await exchange.fetch(Series(symbol, _DAILY), window)
    rows = observations_of(answer, run_id="", settle_ms=0)
    times = times_ms(rows["open_time"])[first_broken(columns_of(rows)) < 0]
    return sorted({time for time in times.tolist() if time in window})
