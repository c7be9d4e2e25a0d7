"""What we lean on in ccxt and aiohttp without their promise. A failure here: upstream changed.

Not tests of ours: each says what our code does because of it, and so what to look at when a version
moves. Dagster's are in test_upstream_pins.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import ccxt
import ccxt.async_support
import orjson
import pytest
from aiohttp import web

from crypto_pipeline_tests.exchanges.canned import always, serving

SINCE: Final = 1_710_506_040_000
ROW: Final = [SINCE, "1", "2", "0.5", "1.5", "10", SINCE + 59_999, "0", 1, "0", "0", "0"]
MARKET: Final = {
    "id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "baseId": "BTC",
    "quoteId": "USDT", "type": "spot", "spot": True, "swap": False, "future": False,
    "option": False, "contract": False, "linear": None, "inverse": None, "active": True,
    "precision": {}, "limits": {}, "info": {},
}  # fmt: skip

Call = Callable[[Any], Awaitable[Any]]


def asked(
    handler: Callable[[web.Request], web.Response],
    call: Call,
    *,
    kind: type | None = None,
    **settings: Any,
) -> Any:
    """Run a call on plain ccxt's binance (or a subclass), all of whose URLs are a local server."""

    async def run() -> Any:
        async with serving(handler) as url:
            exchange = (kind or ccxt.async_support.binance)({"enableRateLimit": False, **settings})
            exchange.timeout_on_exit = 0
            exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], url)
            exchange.set_markets([MARKET])
            try:
                return await call(exchange)
            finally:
                await exchange.close()

    return asyncio.run(run())


async def candles(exchange: Any) -> Any:
    return await exchange.fetch_ohlcv("BTC/USDT", "1m", since=SINCE, limit=1)


def test_ccxt_is_the_version_that_was_measured() -> None:
    """Everything below, core.habits and exchanges.failures were measured with it."""
    assert ccxt.__version__ == ccxt.async_support.__version__ == "4.5.90"


@pytest.mark.parametrize("status", [200, 523, 524, 527, 529])
@pytest.mark.parametrize("body", [b"<html></html>", b'[["17', b"null", b"", b"{}"])
def test_plain_ccxt_takes_soft_failures_for_no_candles(status: int, body: bytes) -> None:
    """Why exchanges.strict exists. If this fails, ccxt has become stricter: good news."""

    def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, status=status, content_type="text/html")

    assert asked(handler, candles) == []


def test_plain_ccxt_sorts_and_cuts_rows() -> None:
    """Why exchanges.strict overrides ``parse_ohlcvs``: what it drops nobody could store or refuse."""
    rows = [[SINCE + shift, *ROW[1:]] for shift in (60_000, 0, -60_000)]
    assert [row[0] for row in asked(always(rows), candles)] == [SINCE]


def test_handle_errors_is_called_for_every_answer() -> None:
    """With status, headers, body and the decoded body (None for what is no JSON object or array)."""
    seen: list[tuple[int, str, Any]] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        def handle_errors(self, *arguments: Any) -> Any:
            code, _, _, _, headers, body, response, *_ = arguments
            assert len(arguments) == 9
            assert isinstance(headers, dict)
            assert any(name.lower() == "date" for name in headers)
            seen.append((code, body, response))
            return super().handle_errors(*arguments)

    for body in (b"[]", b"null", b"<html>", b"", b'"text"', b"[NaN"):
        asked(always(body), candles, kind=Noting)
    assert seen == [
        (200, "[]", []), (200, "null", None), (200, "<html>", None), (200, "", None),
        (200, '"text"', None), (200, "[NaN", None),
    ]  # fmt: skip


def test_parse_ohlcvs_gets_the_list_of_the_decoded_body_itself() -> None:
    """The very object: exchanges.strict tells by it that the rows are the answer's, no default."""
    taken: dict[str, Any] = {}

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        def handle_errors(self, *arguments: Any) -> Any:
            taken["body"] = arguments[6]
            return super().handle_errors(*arguments)

        def parse_ohlcvs(self, ohlcvs: Any, *arguments: Any) -> Any:
            taken["rows"] = ohlcvs
            return super().parse_ohlcvs(ohlcvs, *arguments)

    asked(always([ROW]), candles, kind=Noting)
    assert taken["rows"] is taken["body"]


def test_parse_trades_gets_the_list_of_the_decoded_body_itself() -> None:
    """As with candles; and taking the rows there spares ccxt's parsing of each of millions."""
    taken: dict[str, Any] = {}

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        def handle_errors(self, *arguments: Any) -> Any:
            taken["body"] = arguments[6]
            return super().handle_errors(*arguments)

        def parse_trades(self, trades: Any, *arguments: Any) -> Any:
            taken["rows"] = trades
            return []

    async def trades(exchange: Any) -> Any:
        return await exchange.fetch_trades("BTC/USDT", since=SINCE, limit=1)

    asked(always([{"a": 1, "p": "1", "q": "1", "T": SINCE, "m": True}]), trades, kind=Noting)
    assert taken["rows"] is taken["body"]


def test_all_requests_go_through_fetch_with_the_url_first() -> None:
    """exchanges.strict counts and times requests there."""
    urls: list[str] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        async def fetch(self, url: str, *arguments: Any) -> Any:
            urls.append(url)
            return await super().fetch(url, *arguments)

    asked(always([ROW]), candles, kind=Noting)
    assert len(urls) == 1
    assert "klines" in urls[0]


def test_bodies_are_decoded_by_orjson_where_it_is_installed() -> None:
    """A page of 1,000 candles in 0.3 ms instead of 2; exchanges.strict calls it by itself."""
    assert ccxt.async_support.binance.on_json_response is orjson.loads


def test_a_bare_nan_makes_plain_ccxt_drop_the_page() -> None:
    """Why exchanges.strict decodes with the standard library where orjson refuses NaN."""
    body = b'[[1710506040000,"1","2","0.5",NaN,"10"]]'
    assert asked(always(body), candles) == []


def test_markets_are_loaded_once_whoever_asks() -> None:
    """Concurrent callers wait for the same request; markets that are there are not asked for."""
    requests: list[str] = []

    def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.json_response({"symbols": []})

    async def load(exchange: Any) -> None:
        exchange.markets = exchange.markets_by_id = None
        await asyncio.gather(*(exchange.load_markets() for _ in range(5)))
        exchange.set_markets([MARKET])
        await exchange.load_markets()
        await exchange.load_markets()

    asked(
        handler, load, has={"fetchCurrencies": False},
        options={"fetchMarkets": {"types": ["spot"]}},
    )  # fmt: skip
    assert len(requests) == 1


def test_without_currencies_markets_cost_one_request_less() -> None:
    """``has.fetchCurrencies`` False in our constructor arguments saves it on kraken."""
    requests: dict[object, int] = {}

    async def load(exchange: Any) -> None:
        exchange.markets = exchange.markets_by_id = None
        await exchange.load_markets()

    for has in (True, False):
        requests[has] = 0

        def handler(request: web.Request, has: bool = has) -> web.Response:
            requests[has] += 1
            return web.json_response({"error": [], "result": {}})

        asked(handler, load, kind=ccxt.async_support.kraken, has={"fetchCurrencies": has})
    assert requests == {True: 2, False: 1}


@pytest.mark.parametrize("limited", [True, False])
def test_every_request_is_throttled_unless_the_rate_limit_is_off(limited: bool) -> None:
    """``enableRateLimit: false`` in pipeline.yaml switches ccxt's limiter off, too."""
    costs: list[float] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        async def throttle(self, cost: Any = None) -> None:
            costs.append(cost)

    asked(always([ROW]), candles, kind=Noting, enableRateLimit=limited)
    assert len(costs) == (1 if limited else 0)


def test_options_reach_requests_that_nobody_passes_them_to() -> None:
    """Why config.model refuses ``maxRetriesOnFailure`` and ``paginate`` at any depth."""
    requests: list[str] = []

    def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(status=503)

    async def fails(exchange: Any) -> None:
        with pytest.raises(ccxt.ExchangeNotAvailable):
            await candles(exchange)

    asked(handler, fails, options={"maxRetriesOnFailure": 2})
    assert len(requests) == 3


def test_unknown_timeframes_are_sent() -> None:
    """Why exchanges.wrapper and exchanges.catalogue look into ``timeframes`` themselves."""
    asked_for: list[str] = []

    def handler(request: web.Request) -> web.Response:
        asked_for.append(request.query["interval"])
        return web.json_response([])

    async def seven_minutes(exchange: Any) -> Any:
        return await exchange.fetch_ohlcv("BTC/USDT", "7m", since=SINCE, limit=1)

    asked(handler, seven_minutes)
    assert asked_for == ["7m"]


def test_any_constructor_key_becomes_an_attribute() -> None:
    """Why exchanges.catalogue refuses keys that ccxt's class does not have."""
    exchange = ccxt.async_support.binance({"apikey": "x"})
    assert exchange.apikey == "x"
    assert exchange.apiKey != "x"


# --- aiohttp -------------------------------------------------------------------------------------


def test_aiohttp_sends_a_get_again_when_the_connection_breaks_before_the_answer() -> None:
    """One attempt of ours can be two requests, of which budgets and counts see one."""
    requests = 0

    async def run() -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.get(f"http://127.0.0.1:{port}/")

    asyncio.run(run())
    assert requests == 2
