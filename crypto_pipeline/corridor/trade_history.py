"""Exchange → candles, where the candle endpoint no longer reaches: built from the trades.

Trades are streamed page by page and gone once they are in a candle, so memory does not grow with
their number; what is complete is handed on every few pages, so that a run that dies is resumed from
there. Minutes without trades get no candle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, concat, empty_observations
from crypto_pipeline.core.intervals import Interval, union
from crypto_pipeline.core.timeframes import DAY_MS, timeframe_ms, utc
from crypto_pipeline.core.trades import CandleColumns, TradeAggregator
from crypto_pipeline.errors import BadAnswer, ExchangeError, RequestRefused
from crypto_pipeline.exchanges.trades import REACH_BACK, TradesCursor, TradesPage
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

SOURCE: Final = "trades"
#: About a minute of Kraken's budget, which is what a run that dies has to ask for again.
FLUSH_AFTER: Final = 50
#: How far before a span a trade is looked for, to prove that an exchange's trades reach back to it.
_LEADS: Final = (DAY_MS // 24, DAY_MS, 30 * DAY_MS)


@dataclass(frozen=True, kw_only=True)
class TradeCandles:
    """Candles of one symbol out of some pages of trades.

    Attributes:
        symbol: of the trades.
        covered: by timeframe, from the start of its span to the border before which every trade
            has been seen; timeframes of which nothing is covered yet are left out.
        added: the part of ``covered`` that the batch before this one did not cover.
        observations: the candles that open in ``added``, final, of source ``trades``.
        at: our clock when the newest of the pages came, ms.
        trades: trades in these pages.
        requests: pages asked for, those of the end of the stream included.
    """

    symbol: str
    covered: dict[str, Interval]
    added: dict[str, Interval]
    observations: pd.DataFrame
    at: int
    trades: int
    requests: int


async def trade_candles(
    exchange: ExchangeWrapper,
    symbol: str,
    spans: Mapping[str, Interval],
    *,
    run_id: str,
    flush_after: int = FLUSH_AFTER,
) -> AsyncIterator[TradeCandles]:
    """Candles of several timeframes from one stream of a symbol's trades.

    Args:
        exchange: asked for the trades, one page after the other.
        symbol: ccxt's unified symbol.
        spans: what is wanted, by timeframe; both ends on its grid. Each part of their union is
            streamed once, up to its end or to now.
        run_id: for provenance.
        flush_after: pages after which what is complete is yielded, at the latest.

    Yields:
        batches without overlap; what is complete before a failure is yielded before it is raised.

    Raises:
        ValueError: an end of a span is not on its timeframe's grid.
        ExchangeError: typed by whether a rerun helps.
    """
    for timeframe, span in spans.items():
        if span.start % timeframe_ms(timeframe) or span.end % timeframe_ms(timeframe):
            raise ValueError(f"{span} is not on the grid of {timeframe}")
    for part in union(spans.values()):
        inside = {name: span for name, span in spans.items() if part.start <= span.start < part.end}
        stream = _Stream(exchange, symbol, part, inside, run_id=run_id)
        async for batch in stream.batches(flush_after):
            yield batch


class _Stream:
    """The trades of one uninterrupted part of what is wanted."""

    def __init__(
        self,
        exchange: ExchangeWrapper,
        symbol: str,
        part: Interval,
        spans: Mapping[str, Interval],
        *,
        run_id: str,
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._part = part
        self._spans = {name: span for name, span in spans.items() if span.start < span.end}
        self._run_id = run_id
        self._aggregator = TradeAggregator(self._spans)
        self._border = {name: span.start for name, span in self._spans.items()}
        self._complete_before = part.start  # every trade from before it has been seen
        self._page: TradesPage | None = None
        self._trades = self._requests = self._pages = 0
        self._over = False

    async def batches(self, flush_after: int) -> AsyncIterator[TradeCandles]:
        failure: ExchangeError | None = None
        while failure is None and not self._over:
            self._pages = 0
            try:
                while not self._over and self._pages < flush_after:
                    await self._advance()
            except ExchangeError as error:
                failure = error
            batch = self._batch()
            if batch is not None:
                yield batch
        if failure is not None:
            raise failure

    async def _advance(self) -> None:
        """Take in one page; the stream is over at the end of the part, or where there is no more."""
        page = await (self._first() if self._page is None else self._ask(self._page.next))
        reach = self._reach(self._page or page)
        self._page = page
        self._pages += 1
        wanted = page.times_us >= self._part.start * 1_000
        self._aggregator.add(page.times_us[wanted], page.prices[wanted], page.amounts[wanted])
        self._trades += int(wanted.sum())
        if not len(page.times_us):
            await self._confirm_end(page)
            self._complete_before = max(self._complete_before, self._settled(page))
            self._over = True
            return
        newest = int(page.times_us[-1]) // 1_000
        self._complete_before = max(self._complete_before, newest)
        self._over = newest >= reach

    def _reach(self, page: TradesPage) -> int:
        """Where the stream ends: at the part's end, or at what was now when it was last asked."""
        return min(self._part.end, max(self._settled(page), self._part.start))

    def _settled(self, page: TradesPage) -> int:
        return page.exchange_now - self._exchange.habits.settle_ms

    async def _first(self) -> TradesPage:
        """The first page; of most exchanges, one that proves that its trades reach back so far."""
        start = self._part.start
        if self._exchange.config.ccxt_id in REACH_BACK:
            return await self._ask(TradesCursor.at(start))
        for lead in _LEADS:
            page = await self._ask(TradesCursor.at(max(start - lead, 1)))
            if len(page.times_us) and page.times_us[0] < start * 1_000:
                return page
        raise RequestRefused(
            f"{self._tried}: no trade from before it is served, so the exchange's trades may not"
            " reach back so far.",
            hint="let the exchange's start begin later, or set its habits.trades to false in"
            " pipeline.yaml.",
        )

    async def _ask(self, cursor: TradesCursor | None) -> TradesPage:
        self._requests += 1
        return await self._exchange.fetch_trades(self._symbol, cursor)

    async def _confirm_end(self, page: TradesPage) -> None:
        """Hold a page without new trades against the newest trades: it never proves anything alone.

        Raises:
            BadAnswer: there are trades that the page ought to have held.
        """
        newest = await self._ask(None)
        after = page.next.newest_us
        unseen = (
            newest.times_us >= self._part.start * 1_000
            if after is None
            else newest.times_us > after
        )
        missed = int((unseen & (newest.times_us <= self._settled(page) * 1_000)).sum())
        if missed or not len(newest.times_us):
            others = f"{missed} are" if missed else "not even those are"
            raise BadAnswer(
                f"{self._tried}: the answer to a request {page.next} holds no further trade, but"
                f" {others} among the newest.",
                hint="nothing, if it passes: the next tick asks again. If it stays, all trades of a"
                " page carry one instant, which paging by time cannot pass.",
            )

    @property
    def _tried(self) -> str:
        start = utc(self._part.start).isoformat()
        return f"{self._exchange.key} {self._symbol} trades from {start}"

    def _batch(self) -> TradeCandles | None:
        """What is complete and was not yielded yet; None where that is nothing."""
        page = self._page
        if page is None:
            return None
        built = self._aggregator.take(self._complete_before)
        added, frames = {}, []
        for name, span in self._spans.items():
            border = min(span.end, self._complete_before // timeframe_ms(name) * timeframe_ms(name))
            if border <= self._border[name]:
                continue
            added[name] = Interval(self._border[name], border)
            self._border[name] = border
            frames.append(self._observations(name, _within(built[name], added[name]), page))
        if not added:
            return None
        batch = TradeCandles(
            symbol=self._symbol,
            covered={
                name: Interval(span.start, self._border[name])
                for name, span in self._spans.items()
                if self._border[name] > span.start
            },
            added=added,
            observations=concat([empty_observations(), *frames], OBSERVATION_DTYPES),
            at=page.fetched_at,
            trades=self._trades,
            requests=self._requests,
        )
        self._trades = self._requests = 0
        return batch

    def _observations(self, name: str, candles: CandleColumns, page: TradesPage) -> pd.DataFrame:
        number = len(candles.open_time)
        fetched_at = np.full(number, page.fetched_at)

        def repeated(text: str) -> pd.Categorical:
            return pd.Categorical.from_codes(np.zeros(number, int), pd.Index([text], dtype="str"))

        columns = {
            **candles._asdict(),
            "symbol": repeated(self._symbol),
            "timeframe": repeated(name),
            "open_time": _utc_times(candles.open_time),
            "final": np.ones(number, bool),
            "fetched_at": _utc_times(fetched_at),
            "run_id": repeated(self._run_id),
            "source": repeated(SOURCE),
            "clock_offset_ms": np.full(number, page.clock_offset_ms),
            "received": pd.array([None] * number, dtype="str"),
        }
        return pd.DataFrame({column: columns[column] for column in OBSERVATION_DTYPES})


def _within(candles: CandleColumns, bounds: Interval) -> CandleColumns:
    first, end = np.searchsorted(candles.open_time, bounds)
    return candles.rows(slice(int(first), int(end)))


def _utc_times(times: np.ndarray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(times.view("datetime64[ms]")).tz_localize("UTC")
