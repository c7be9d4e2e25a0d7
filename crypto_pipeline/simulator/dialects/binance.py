"""Binance and Binance.US spot, REST v3.

Klines: ``startTime`` and ``endTime`` are milliseconds and inclusive on the open time; 500 rows by
default, 1,000 at most; quiet minutes are flat rows; the forming row is served like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from crypto_pipeline.core import timeframes
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

_INTERVALS = {
    name: timeframes.timeframe_ms(name)
    for name in ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")
}
_DEFAULT_ROWS = 500
_DECIMALS = 8
_ENDPOINTS = {
    "api/v3/klines": "candles",
    "api/v3/exchangeInfo": "markets",
    "api/v3/time": "time",
    "api/v3/ping": "ping",
    # The futures markets, which ccxt's `binance` loads by default, are empty here.
    "fapi/v1/exchangeInfo": "markets",
    "dapi/v1/exchangeInfo": "markets",
}
_WEIGHTS = {"candles": 2, "markets": 20}


class BinanceDialect(Dialect):
    """Binance's wire format."""

    layout = RowLayout(time=0, open=1, high=2, low=3, close=4, volume=5, time_unit_ms=1, text=True)
    default_page_limit: ClassVar[int] = 1_000

    def names(self, symbol: str) -> tuple[str, ...]:
        """``BTCUSDT``."""
        return ("".join(split(symbol)),)

    def route(self, path: str, params: Mapping[str, str]) -> Route:
        """By path; the symbol is a parameter."""
        endpoint = _ENDPOINTS.get(path, "other")
        return Route(endpoint, self.symbol_of.get(params.get("symbol", "")))

    def weight(self, endpoint: str) -> int:
        """Request weights of the real API."""
        return _WEIGHTS.get(endpoint, 1)

    def usage_headers(self, used: int) -> dict[str, str]:
        """The weight used this minute."""
        return {"x-mbx-used-weight": str(used), "x-mbx-used-weight-1m": str(used)}

    def answer(self, path: str, params: Mapping[str, str], route: Route, venue: Venue) -> Answer:
        """Klines, markets, time; an empty 404 for all else."""
        match route.endpoint:
            case "candles":
                return self._klines(params, route.symbol, venue)
            case "markets":
                return Answer.json(self._exchange_info(path, venue))
            case "time":
                return Answer.json({"serverTime": int(venue.now_ms())})
            case "ping":
                return Answer.json({})
            case _:
                return Answer(b"", 404)

    def too_many(self, *, limit: int, retry_after: int, banned_until_ms: float | None) -> Answer:
        """429, or 418 for a banned address, both with Retry-After."""
        if banned_until_ms is None:
            answer = _error(
                -1003,
                f"Too much request weight used; current limit is {limit} request weight per "
                "1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.",
                status=429,
            )
        else:
            answer = _error(
                -1003,
                f"Way too much request weight used; IP banned until {int(banned_until_ms)}. "
                "Please use WebSocket Streams for live updates to avoid bans.",
                status=418,
            )
        answer.headers["Retry-After"] = str(retry_after)
        return answer

    def rows_in(self, content: Any) -> list[list[Any]] | None:
        """The answer is the list of rows."""
        return content if isinstance(content, list) else None

    def render(self, series: Series, candles: Candles, timeframe_ms: int) -> tuple[bytes, Ints]:
        """Twelve columns, numbers as text with eight decimals, the close time inclusive."""
        price, volume = series.source.price_decimals, series.source.volume_decimals
        comma = b'","'
        return render_rows(
            [
                b"[",
                Number(candles.time),
                b',"',
                Number(candles.open, _DECIMALS, price),
                comma,
                Number(candles.high, _DECIMALS, price),
                comma,
                Number(candles.low, _DECIMALS, price),
                comma,
                Number(candles.close, _DECIMALS, price),
                comma,
                Number(candles.volume, _DECIMALS, volume),
                b'",',
                Number(candles.time + (timeframe_ms - 1)),
                b',"',
                Number(candles.quote, _DECIMALS),
                b'",',
                Number(candles.count),
                b',"',
                Number(candles.taker_base, _DECIMALS),
                comma,
                Number(candles.taker_quote, _DECIMALS),
                b'","0"],',
            ],
            len(candles),
        )

    def _klines(self, params: Mapping[str, str], symbol: str | None, venue: Venue) -> Answer:
        for name in ("symbol", "interval"):
            if not params.get(name):
                return _error(
                    -1102,
                    f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.",
                )
        if symbol is None:
            return _error(-1121, "Invalid symbol.")
        length = _INTERVALS.get(params["interval"])
        if length is None:
            return _error(-1120, "Invalid interval.")
        try:
            limit = int(params.get("limit", _DEFAULT_ROWS))
            start, end = (
                int(params[name]) if name in params else None for name in ("startTime", "endTime")
            )
        except ValueError:
            return _error(-1100, "Illegal characters found in a parameter.")
        return self._page(venue, symbol, length, start, end, min(limit, venue.page_limit))

    def _page(
        self, venue: Venue, symbol: str, length: int, start: int | None, end: int | None, limit: int
    ) -> Answer:
        closed_end = last_closed_end(venue.now_ms(), length)
        window_end = closed_end + length if end is None else end + 1
        pager = venue.pager(symbol, length)
        if venue.history_limit:
            start = max(start or 0, closed_end - venue.history_limit * length)
        forming = None
        if window_end > closed_end and (start is None or start <= closed_end):
            forming = self.forming_row(venue, symbol, length)
        final_end = min(window_end, closed_end)
        if start is None:
            page = pager.newest(0, final_end, limit - (forming is not None))
        else:
            page = pager.oldest(start, final_end, limit)
        runs = page.runs
        if forming is not None and page.count < limit:
            runs = [*runs, forming[1]]
        return Answer(bracketed(b"[", runs, b"]"))

    def _exchange_info(self, path: str, venue: Venue) -> dict[str, object]:
        symbols = self.symbols if path.startswith("api/") else ()
        return {
            "timezone": "UTC",
            "serverTime": int(venue.now_ms()),
            "rateLimits": [
                {
                    "rateLimitType": "REQUEST_WEIGHT",
                    "interval": "MINUTE",
                    "intervalNum": 1,
                    "limit": 6000,
                }
            ],
            "exchangeFilters": [],
            "symbols": [self._market(symbol, venue) for symbol in symbols],
        }

    def _market(self, symbol: str, venue: Venue) -> dict[str, object]:
        base, quote = split(symbol)
        source = venue.series(symbol).source
        tick = f"{10.0**-source.price_decimals:.8f}"
        step = f"{10.0**-source.volume_decimals:.8f}"
        return {
            "symbol": base + quote,
            "status": "TRADING" if venue.is_listed(symbol) else "BREAK",
            "baseAsset": base,
            "baseAssetPrecision": _DECIMALS,
            "quoteAsset": quote,
            "quotePrecision": _DECIMALS,
            "quoteAssetPrecision": _DECIMALS,
            "baseCommissionPrecision": _DECIMALS,
            "quoteCommissionPrecision": _DECIMALS,
            "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
            "icebergAllowed": True,
            "ocoAllowed": True,
            "isSpotTradingAllowed": True,
            "isMarginTradingAllowed": False,
            "filters": [
                {
                    "filterType": "PRICE_FILTER",
                    "minPrice": tick,
                    "maxPrice": "1000000.00000000",
                    "tickSize": tick,
                },
                {
                    "filterType": "LOT_SIZE",
                    "minQty": step,
                    "maxQty": "9000000.00000000",
                    "stepSize": step,
                },
                {"filterType": "NOTIONAL", "minNotional": "5.00000000"},
            ],
            "permissions": [],
            "permissionSets": [["SPOT"]],
        }


def _error(code: int, message: str, *, status: int = 400) -> Answer:
    return Answer.json({"code": code, "msg": message}, status=status)
