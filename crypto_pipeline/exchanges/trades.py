"""Trades of an exchange, one page a request, walked from old to new.

A page begins with trades that the page before it held already: they are dropped by their ids, and
prove that nothing between the two was left out. So a trade at a page's border is neither lost nor
doubled, whatever other trades share its instant, and an answer that has nothing to do with what was
asked (empty, cached, the newest trades instead of old ones) is never taken for "no trades".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from crypto_pipeline.core.rows import as_received
from crypto_pipeline.core.timeframes import utc
from crypto_pipeline.errors import BadAnswer
from crypto_pipeline.exchanges.exchanged import CURRENT, Exchanged
from crypto_pipeline.exchanges.trade_rows import (
    Floats,
    Id,
    Ints,
    TradeColumns,
    chronological,
    kraken_columns,
    parsed_columns,
    read_rows,
)

#: Exchanges documented to serve trades from any instant back to their first, as ``since`` asks.
REACH_BACK: Final = frozenset({"kraken"})

_NS_PER_MS: Final = 1_000_000
#: Kraken's cursor and the times in its rows differ in their last digits; see `_kraken`.
_KRAKEN_OVERLAP_NS: Final = 1_000
#: Trades later than the answer's own ``Date`` by more than this have no true time.
_FUTURE_MS: Final = 60_000


@dataclass(frozen=True, kw_only=True)
class TradesCursor:
    """Where a page starts, and what the page before it ended with.

    Attributes:
        since_ns: trades after this instant, nanoseconds UTC.
        newest_us: time of the newest trade so far; None before the first page.
        last_id: its id.
        seen: ids of the page before.
    """

    since_ns: int
    newest_us: int | None = None
    last_id: Id | None = None
    seen: frozenset[Id] = frozenset()

    @classmethod
    def at(cls, start_ms: int) -> TradesCursor:
        """Before the first trade at or after an instant."""
        return cls(since_ns=max(start_ms * _NS_PER_MS - 1, 0))

    def __str__(self) -> str:
        return f"after {utc(self.since_ns // _NS_PER_MS).isoformat()}"


@dataclass(frozen=True, kw_only=True)
class TradesPage:
    """The trades of one page that no page before it held, in the order they were traded.

    Attributes:
        times_us: microseconds UTC, ascending.
        prices: of the quote currency.
        amounts: of the base currency.
        next: the cursor of the next page.
        fetched_at: our clock when the answer was asked for, ms.
        clock_offset_ms: the exchange's clock minus ours.
    """

    times_us: Ints
    prices: Floats
    amounts: Floats
    next: TradesCursor
    fetched_at: int
    clock_offset_ms: int

    @property
    def exchange_now(self) -> int:
        """The exchange's clock when it answered, ms, at the earliest."""
        return self.fetched_at + self.clock_offset_ms


class TradesRequest:
    """One page, asked through ccxt and read in the same attempt, so that retries cover both.

    Args:
        exchange: a strict ccxt exchange.
        symbol: ccxt's unified symbol.
        cursor: None asks for the newest trades.
    """

    def __init__(self, exchange: Any, symbol: str, cursor: TradesCursor | None) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._cursor = cursor
        self._read: tuple[TradeColumns, TradesCursor] | None = None

    async def __call__(self) -> None:
        """Ask once.

        Raises:
            BadAnswer: what came is not a page of trades after the cursor.
            ccxt.BaseError: and whatever else ccxt raises.
        """
        seen = CURRENT.get()
        if seen is None:
            raise AssertionError("called outside of ExchangeWrapper")
        way = _kraken if self._exchange.id == "kraken" else _by_time
        self._read = await way(self._exchange, self._symbol, self._cursor, seen)

    def page(self, *, fetched_at: int, clock_offset_ms: int) -> TradesPage:
        """What the call that succeeded read."""
        if self._read is None:
            raise AssertionError("no call has succeeded")
        columns, following = self._read
        return TradesPage(
            times_us=columns.times_us,
            prices=columns.prices,
            amounts=columns.amounts,
            next=following,
            fetched_at=fetched_at,
            clock_offset_ms=clock_offset_ms,
        )


async def _kraken(
    exchange: Any, symbol: str, cursor: TradesCursor | None, seen: Exchanged
) -> tuple[TradeColumns, TradesCursor]:
    """Kraken: ``since`` is an exclusive cursor in nanoseconds, ``last`` names the page's last trade.

    ccxt's ``since`` is cut to seconds, but ``params`` go to the exchange as they are. A row's time
    is a JSON number, which as float64 is sure to a quarter of a microsecond, ``last`` is exact: the
    next page starts a microsecond before it. Source: ccxt 4.5.90, kraken.fetch_trades; Kraken's
    "Get Recent Trades".
    """
    params = {} if cursor is None else {"since": str(cursor.since_ns)}
    await exchange.fetch_trades(symbol, params=params)
    result = seen.body.get("result") if isinstance(seen.body, dict) else None
    rows = result.get(exchange.market(symbol)["id"]) if isinstance(result, dict) else None
    if not isinstance(result, dict) or not isinstance(rows, list):
        raise BadAnswer(f"the answer holds no trades of {symbol}: {as_received(seen.body)}")
    columns = read_rows(rows, kraken_columns)
    if not rows:
        return _continued(columns, cursor, cursor.since_ns if cursor else 0, seen)
    last = _kraken_last(result.get("last"))
    if cursor is not None and last <= cursor.since_ns:
        raise BadAnswer(
            f"the answer's own cursor ({last}) does not move on from the one asked for"
            f" ({cursor.since_ns}), so that its trades would come again for ever"
        )
    # not before this page's own start: there lie trades that it did not hold
    start = max(last - _KRAKEN_OVERLAP_NS, cursor.since_ns if cursor else 0)
    return _continued(columns, cursor, start, seen)


def _kraken_last(last: object) -> int:
    try:
        return int(str(last))
    except ValueError:
        raise BadAnswer(f"the answer names no last trade, but {as_received(last)}") from None


async def _by_time(
    exchange: Any, symbol: str, cursor: TradesCursor | None, seen: Exchanged
) -> tuple[TradeColumns, TradesCursor]:
    """Any other exchange: ccxt's ``since`` in milliseconds, rows read by ccxt's ``parse_trade``.

    The next page starts a millisecond before the newest trade. Where all of a page carries one
    instant this cannot advance; the page then holds nothing new, which is for the caller to doubt.
    """
    since = None if cursor is None else cursor.since_ns // _NS_PER_MS
    await exchange.load_markets()
    limit = exchange.feature_value(symbol, "fetchTrades", "limit")
    await exchange.fetch_trades(symbol, since=since, limit=limit)
    if seen.rows is None:
        raise BadAnswer(f"ccxt's {exchange.id} returned without reading any trades")
    market = exchange.market(symbol)

    def columns_of(rows: Sequence[Any]) -> TradeColumns:
        return parsed_columns([exchange.parse_trade(row, market) for row in rows])

    columns = chronological(read_rows(seen.rows, columns_of))
    newest_us = int(columns.times_us[-1]) if columns.ids else 0
    since_ns = max((newest_us - 1_000) * 1_000, cursor.since_ns if cursor else 0)
    return _continued(columns, cursor, since_ns, seen)


def _continued(
    columns: TradeColumns, cursor: TradesCursor | None, since_ns: int, seen: Exchanged
) -> tuple[TradeColumns, TradesCursor]:
    """What is new of a page, and where the next starts.

    Raises:
        BadAnswer: it is not the continuation of the page before it.
    """
    times, ids = columns.times_us, columns.ids
    late = np.flatnonzero(times[1:] < times[:-1])
    if len(late):
        raise BadAnswer(f"trade {ids[int(late[0]) + 1]} is older than the one before it")
    latest = math.inf if seen.server_time is None else (seen.server_time + _FUTURE_MS) * 1_000
    if len(times) and int(times[-1]) > latest:
        raise BadAnswer(f"trade {ids[-1]} is of {utc(int(times[-1]) // 1_000)}, in the future")
    held = frozenset(ids)
    if len(held) < len(ids):
        raise BadAnswer(f"the answer holds {len(ids) - len(held)} of its trades twice")
    before = cursor or TradesCursor(since_ns=since_ns)
    if before.last_id is not None and before.last_id not in held:
        raise BadAnswer(
            f"the answer ({len(ids)} trades) does not hold trade {before.last_id}, with which the"
            " page before it ended: what lies between is unknown"
        )
    new = np.array([place for place, one in enumerate(ids) if one not in before.seen], np.int64)
    fresh = columns.at(new)
    if not fresh.ids:
        return fresh, before
    if before.newest_us is not None and int(fresh.times_us[0]) < before.newest_us:
        raise BadAnswer(f"trade {fresh.ids[0]} is older than the page before it")
    return fresh, TradesCursor(
        since_ns=since_ns,
        newest_us=int(fresh.times_us[-1]),
        last_id=fresh.ids[-1],
        seen=held,
    )
