"""Kraken spot, REST version 0.

OHLC: ``since`` is in seconds and exclusive, there is no end; whatever ``since`` says, only the
newest 720 committed candles are reached, and the forming one is always the last row; ``last`` is
the open time of the newest committed candle. Errors come with HTTP 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, ClassVar

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator.dialects import kraken_trades
from crypto_pipeline.simulator.dialects.base import (
    Dialect,
    Route,
    RowLayout,
    Venue,
    bracketed,
    last_closed_end,
    split,
)
from crypto_pipeline.simulator.rendering import Number, render_rows
from crypto_pipeline.simulator.truth import Series
from crypto_pipeline.simulator.truth.candles import Candles, Ints
from crypto_pipeline.simulator.wire import Answer

_INTERVAL_MINUTES = (1, 5, 15, 30, 60, 240, 1440)
_ENDPOINTS = {
    "0/public/OHLC": "candles",
    "0/public/Trades": "trades",
    "0/public/AssetPairs": "markets",
    "0/public/Assets": "currencies",
    "0/public/Time": "time",
    "0/public/SystemStatus": "ping",
}
_VOLUME_DECIMALS = 8
# Kraken's own names: assets of its first years carry an X (crypto) or Z (fiat) in front.
_ALTNAMES = {"BTC": "XBT", "DOGE": "XDG"}
_OLD_CRYPTO = {"XBT", "ETH", "LTC", "XRP", "XMR", "ZEC", "XLM", "ETC", "REP", "MLN", "XDG"}
_OLD_FIAT = {"USD", "EUR", "GBP", "CAD", "JPY"}


class KrakenDialect(Dialect):
    """Kraken's wire format."""

    layout = RowLayout(
        time=0, open=1, high=2, low=3, close=4, volume=6, time_unit_ms=1_000, text=True
    )
    default_history_limit: ClassVar[int] = 720
    default_page_limit: ClassVar[int] = 720

    def names(self, symbol: str) -> tuple[str, ...]:
        """``XXBTZUSD`` (the market id), ``XBTUSD``, ``XBT/USD``."""
        base, quote = map(_altname, split(symbol))
        base_id, quote_id = map(_asset_id, split(symbol))
        old = base in _OLD_CRYPTO and quote in _OLD_FIAT | _OLD_CRYPTO
        # DOGE is the exception: XDGUSD, but XXDGXXBT.
        if old and not (base == "XDG" and quote in _OLD_FIAT):
            return base_id + quote_id, base + quote, f"{base}/{quote}"
        return base + quote, f"{base}/{quote}"

    def route(self, path: str, params: Mapping[str, str]) -> Route:
        """By path; the pair is a parameter."""
        endpoint = _ENDPOINTS.get(path, "other")
        return Route(endpoint, self.symbol_of.get(params.get("pair", "")))

    def answer(self, path: str, params: Mapping[str, str], route: Route, venue: Venue) -> Answer:
        """OHLC, trades, pairs, assets, time."""
        del path
        now = venue.now_ms() / 1_000
        match route.endpoint:
            case "candles" | "trades":
                return self._of_pair(params, route, venue)
            case "markets":
                listed = [symbol for symbol in self.symbols if venue.is_listed(symbol)]
                return _result({self.names(one)[0]: self._pair(one, venue) for one in listed})
            case "currencies":
                currencies = {part for symbol in self.symbols for part in split(symbol)}
                return _result({_asset_id(name): _asset(name) for name in sorted(currencies)})
            case "time":
                return _result({"unixtime": int(now), "rfc1123": formatdate(now)})
            case "ping":
                return _result({"status": "online", "timestamp": formatdate(now)})
            case _:
                return _error("EGeneral:Unknown method")

    def too_many(self, *, limit: int, retry_after: int, banned_until_ms: float | None) -> Answer:
        """An error with HTTP 200, as for everything."""
        del limit, retry_after, banned_until_ms
        return _error("EGeneral:Too many requests")

    def rows_in(self, content: Any) -> list[list[Any]] | None:
        """The rows under the pair's name."""
        result = content.get("result") if isinstance(content, dict) else None
        if not isinstance(result, dict):
            return None
        return next((rows for name, rows in result.items() if name != "last"), None)

    def render(self, series: Series, candles: Candles, timeframe_ms: int) -> tuple[bytes, Ints]:
        """Eight columns: time in seconds, prices, average price and volume as text, the count."""
        del timeframe_ms
        price, volume = series.source.price_decimals, series.source.volume_decimals
        average = candles.quote / (candles.volume + (candles.volume == 0))
        comma = b'","'
        return render_rows(
            [
                b"[",
                Number(candles.time // 1_000),
                b',"',
                Number(candles.open, price, price),
                comma,
                Number(candles.high, price, price),
                comma,
                Number(candles.low, price, price),
                comma,
                Number(candles.close, price, price),
                comma,
                Number(average, price),
                comma,
                Number(candles.volume, _VOLUME_DECIMALS, volume),
                b'",',
                Number(candles.count),
                b"],",
            ],
            len(candles),
        )

    def _of_pair(self, params: Mapping[str, str], route: Route, venue: Venue) -> Answer:
        symbol = route.symbol
        if not params.get("pair"):
            return _error("EGeneral:Invalid arguments")
        if symbol is None or not venue.is_listed(symbol):
            return _error("EQuery:Unknown asset pair")
        name = self.names(symbol)[0]
        try:
            if route.endpoint == "trades":
                return kraken_trades.page(params, name, venue.series(symbol), venue.now_ms())
            interval = int(params.get("interval", 1))
            since = int(float(params["since"])) if "since" in params else None
        except ValueError:
            return _error("EGeneral:Invalid arguments")
        if interval not in _INTERVAL_MINUTES:
            return _error("EGeneral:Invalid arguments")
        return self._ohlc(venue, symbol, name, interval * MINUTE_MS, since)

    def _ohlc(self, venue: Venue, symbol: str, name: str, length: int, since: int | None) -> Answer:
        closed_end = last_closed_end(venue.now_ms(), length)
        pager = venue.pager(symbol, length)
        start = 0 if since is None else since * 1_000 + 1
        limit = min(venue.history_limit or venue.page_limit, venue.page_limit)
        if venue.history_limit or since is None:
            page = pager.newest(start, closed_end, limit)
        else:
            page = pager.oldest(start, closed_end, limit)
        runs = page.runs
        last = closed_end - length if page.last is None else page.last
        forming = self.forming_row(venue, symbol, length)
        if forming is not None:
            runs = [*runs, forming[1]]
        head = b'{"error":[],"result":{"%b":[' % name.encode()
        return Answer(bracketed(head, runs, b'],"last":%d}}' % (last // 1_000)))

    def _pair(self, symbol: str, venue: Venue) -> dict[str, object]:
        base, quote = map(_altname, split(symbol))
        base_id, quote_id = map(_asset_id, split(symbol))
        source = venue.series(symbol).source
        return {
            "altname": base + quote,
            "wsname": f"{base}/{quote}",
            "aclass_base": "currency",
            "base": base_id,
            "aclass_quote": "currency",
            "quote": quote_id,
            "lot": "unit",
            "cost_decimals": 5,
            "pair_decimals": source.price_decimals,
            "lot_decimals": _VOLUME_DECIMALS,
            "lot_multiplier": 1,
            "leverage_buy": [],
            "leverage_sell": [],
            "fees": [[0, 0.4], [10000, 0.35]],
            "fees_maker": [[0, 0.25], [10000, 0.2]],
            "fee_volume_currency": "ZUSD",
            "margin_call": 80,
            "margin_stop": 40,
            "ordermin": "0.0001",
            "costmin": "0.5",
            "tick_size": f"{10.0**-source.price_decimals:.{source.price_decimals}f}",
            "status": "online",
        }


def _altname(currency: str) -> str:
    return _ALTNAMES.get(currency, currency)


def _asset_id(currency: str) -> str:
    name = _altname(currency)
    if name in _OLD_CRYPTO:
        return f"X{name}"
    return f"Z{name}" if name in _OLD_FIAT else name


def _asset(currency: str) -> dict[str, object]:
    return {
        "aclass": "currency",
        "altname": _altname(currency),
        "decimals": 10,
        "display_decimals": 5,
        "status": "enabled",
    }


def _result(result: object) -> Answer:
    return Answer.json({"error": [], "result": result})


def _error(message: str) -> Answer:
    return Answer.json({"error": [message]})
