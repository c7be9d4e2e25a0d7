"""Over TLS, as every exchange is asked in earnest; the simulator speaks plain HTTP."""

from __future__ import annotations

import asyncio
import gc
import ssl
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web

from crypto_pipeline.exchanges.strict import strict_exchange

ANSWER = [[1, "2", "3", "1", "2", "6", 7, "8", 9, "0", "0", "0"]]


def test_closing_leaves_no_connection_open_and_waits_for_nothing(tmp_path: Path) -> None:
    """Every run slept a quarter of a second at its end, which aiohttp's own close makes needless.

    An open transport that is collected is a ResourceWarning, and warnings are errors here.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    waits = asyncio.run(_ask_and_close(authority, str(tmp_path / "authority.pem")))
    gc.collect()
    assert waits == [0]


async def _ask_and_close(authority: trustme.CA, cafile: str) -> list[float]:
    """The pauses ccxt took while it closed, ms."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(0.05)  # so that each request has a connection of its own
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=context)
    await site.start()
    exchange: Any = strict_exchange("binance", {"enableRateLimit": False, "cafile": cafile})
    url = f"https://localhost:{runner.addresses[0][1]}/"
    answers = await asyncio.gather(*(exchange.fetch(url) for _ in range(5)))
    assert answers == [ANSWER] * 5
    waits: list[float] = []

    async def sleep(milliseconds: float) -> None:
        waits.append(milliseconds)

    exchange.sleep = sleep
    await exchange.close()
    del exchange
    gc.collect()
    await runner.cleanup()
    return waits
