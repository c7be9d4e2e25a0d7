"""A real HTTP server that gives one answer to everything, for exchanges the simulator does not speak."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date
from email.utils import formatdate
from typing import Any

import orjson
from aiohttp import web

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.rows import PlainRows
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

NOW = 1_762_820_224_000
Handler = Callable[[web.Request], web.Response]


def as_sent(rows: Any) -> list[Any]:
    """The rows of an answer as they came, however they were read."""
    return rows.as_sent() if isinstance(rows, PlainRows) else rows


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The server's URL. Its clock stands at ``NOW``: two answers to one question are equal."""

    async def handle(request: web.Request) -> web.Response:
        response = handler(request)
        response.headers.setdefault("Date", formatdate(NOW / 1_000, usegmt=True))
        return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def always(content: Any) -> Handler:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return lambda request: web.Response(body=body, content_type="application/json")


@asynccontextmanager
async def wrapped(
    ccxt_id: str,
    url: str,
    *,
    symbol: str = "BTC/USDT",
    market_id: str = "BTCUSDT",
    secrets: tuple[str, ...] = (),
    **ccxt: Any,
) -> AsyncIterator[ExchangeWrapper]:
    """A wrapper of any ccxt exchange whose every URL is the given one; it knows one market."""
    config = ExchangeConfig.model_validate(
        {
            "ccxt_id": ccxt_id,
            "symbols": [symbol],
            "start": date(2024, 1, 1),
            "retry": {"attempts": 1},
            "timeout_seconds": 5,
            "ccxt": {"enableRateLimit": False, **ccxt},
        }
    )
    async with ExchangeWrapper(
        key=ccxt_id, config=config, secrets=secrets, clock=lambda: NOW
    ) as wrapper:
        exchange = wrapper._ccxt
        exchange.urls["api"] = _everywhere(exchange.urls["api"], url)
        base, quote = symbol.split("/")
        exchange.set_markets(
            [
                {
                    "id": market_id, "symbol": symbol, "base": base, "quote": quote,
                    "baseId": base, "quoteId": quote, "baseName": base, "type": "spot",
                    "spot": True, "swap": False, "future": False, "option": False,
                    "contract": False, "linear": None, "inverse": None, "active": True,
                    "precision": {}, "limits": {}, "info": {},
                }
            ]
        )  # fmt: skip
        yield wrapper


def _everywhere(urls: Any, url: str) -> Any:
    if isinstance(urls, dict):
        return {name: _everywhere(value, url) for name, value in urls.items()}
    return url
