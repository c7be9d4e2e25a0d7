"""Coinbase Exchange (the former Coinbase Pro), REST.

Candles: newest first, ``[time, low, high, open, close, volume]`` as numbers, time in seconds;
quiet minutes are left out; ``start`` and ``end`` are inclusive, both or neither, and more than 300
buckets between them are refused. A ``start`` inside a bucket returns that bucket as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from crypto_pipeline.core.timeframes import to_ms, utc
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

_GRANULARITIES = (60, 300, 900, 3_600, 21_600, 86_400)
_VOLUME_DECIMALS = 8
_FIAT = {"USD", "EUR", "GBP"}


class CoinbaseExchangeDialect(Dialect):
    """Coinbase Exchange's wire format."""

    layout = RowLayout(
        time=0, low=1, high=2, open=3, close=4, volume=5, time_unit_ms=1_000, text=False
    )
    newest_first: ClassVar[bool] = True
    default_page_limit: ClassVar[int] = 300

    def names(self, symbol: str) -> tuple[str, ...]:
        """``BTC-USD``."""
        return ("-".join(split(symbol)),)

    def route(self, path: str, params: Mapping[str, str]) -> Route:
        """By path; the product is part of it."""
        del params
        match path.split("/"):
            case ["products"]:
                return Route("markets")
            case ["products", product, "candles"]:
                return Route("candles", self.symbol_of.get(product))
            case ["currencies"]:
                return Route("currencies")
            case ["time"]:
                return Route("time")
            case _:
                return Route("other")

    def answer(self, path: str, params: Mapping[str, str], route: Route, venue: Venue) -> Answer:
        """Candles, products, currencies, time; 404 for all else."""
        del path
        now_ms = venue.now_ms()
        match route.endpoint:
            case "candles" if route.symbol is not None:
                return self._candles(params, route.symbol, venue)
            case "markets":
                return Answer.json([self._product(symbol, venue) for symbol in self.symbols])
            case "currencies":
                currencies = {part for symbol in self.symbols for part in split(symbol)}
                return Answer.json([_currency(name) for name in sorted(currencies)])
            case "time":
                iso = utc(int(now_ms)).isoformat(timespec="milliseconds")
                return Answer.json(
                    {"iso": iso.replace("+00:00", "Z"), "epoch": int(now_ms) / 1_000}
                )
            case _:
                return _error("NotFound", status=404)

    def too_many(self, *, limit: int, retry_after: int, banned_until_ms: float | None) -> Answer:
        """429."""
        del limit, retry_after, banned_until_ms
        return _error("Public rate limit exceeded", status=429)

    def rows_in(self, content: Any) -> list[list[Any]] | None:
        """The answer is the list of rows."""
        return content if isinstance(content, list) else None

    def render(self, series: Series, candles: Candles, timeframe_ms: int) -> tuple[bytes, Ints]:
        """Six columns of JSON numbers."""
        del timeframe_ms
        price, volume = series.source.price_decimals, series.source.volume_decimals

        def number(column: Any) -> Number:
            return Number(column, max(price, 2), price, trim=True)

        return render_rows(
            [
                b"[",
                Number(candles.time // 1_000),
                b",",
                number(candles.low),
                b",",
                number(candles.high),
                b",",
                number(candles.open),
                b",",
                number(candles.close),
                b",",
                Number(candles.volume, _VOLUME_DECIMALS, volume, trim=True),
                b"],",
            ],
            len(candles),
        )

    def _candles(self, params: Mapping[str, str], symbol: str, venue: Venue) -> Answer:
        try:
            granularity = int(params.get("granularity", 60))
        except ValueError:
            granularity = 0
        if granularity not in _GRANULARITIES:
            return _error("Unsupported granularity")
        length = granularity * 1_000
        closed_end = last_closed_end(venue.now_ms(), length)
        pager = venue.pager(symbol, length)
        forming = None
        if not (params.get("start") and params.get("end")):
            forming = self.forming_row(venue, symbol, length)
            page = pager.newest(0, closed_end, venue.page_limit - (forming is not None))
        else:
            try:
                start, end = _milliseconds(params["start"]), _milliseconds(params["end"])
            except ValueError:
                return _error("Invalid start or end")
            if end < start:
                return _error("start must be before end")
            if (end - start) / length > venue.page_limit:
                return _error(
                    "granularity too small for the requested time range. "
                    f"Count of aggregations requested exceeds {venue.page_limit}"
                )
            first = start // length * length
            page = pager.oldest(first, min(end + 1, closed_end), venue.page_limit + 1)
            if first <= closed_end <= end:
                forming = self.forming_row(venue, symbol, length)
        runs = page.runs if forming is None else [forming[1], *page.runs]
        return Answer(bracketed(b"[", runs, b"]"))

    def _product(self, symbol: str, venue: Venue) -> dict[str, object]:
        base, quote = split(symbol)
        source = venue.series(symbol).source
        listed = venue.is_listed(symbol)
        return {
            "id": f"{base}-{quote}",
            "base_currency": base,
            "quote_currency": quote,
            "quote_increment": f"{10.0**-source.price_decimals:.{source.price_decimals}f}",
            "base_increment": "0.00000001",
            "display_name": f"{base}-{quote}",
            "min_market_funds": "1",
            "margin_enabled": False,
            "post_only": False,
            "limit_only": False,
            "cancel_only": False,
            "status": "online" if listed else "delisted",
            "status_message": "",
            "trading_disabled": not listed,
            "fx_stablecoin": False,
            "max_slippage_percentage": "0.02000000",
            "auction_mode": False,
            "high_bid_limit_percentage": "",
        }


def _milliseconds(text: str) -> int:
    """ISO 8601 (UTC if it does not say) or Unix seconds."""
    if text.isdecimal():
        return int(text) * 1_000
    time = datetime.fromisoformat(text)
    return to_ms(time if time.tzinfo else time.replace(tzinfo=UTC))


def _currency(currency: str) -> dict[str, object]:
    return {
        "id": currency,
        "name": currency,
        "min_size": "0.00000001",
        "status": "online",
        "message": "",
        "max_precision": "0.00000001",
        "convertible_to": [],
        "details": {"type": "fiat" if currency in _FIAT else "crypto"},
        "default_network": "",
        "supported_networks": [],
        "display_name": currency,
    }


def _error(message: str, *, status: int = 400) -> Answer:
    return Answer.json({"message": message}, status=status)
