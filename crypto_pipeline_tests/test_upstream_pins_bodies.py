"""How ccxt and aiohttp read an answer's body: what exchanges.bounded leans on.

A failure here: upstream changed, and a bound may no longer hold.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import ccxt
import ccxt.async_support
import orjson
import pytest
from aiohttp import web

from crypto_pipeline_tests.exchanges.canned import serving
from crypto_pipeline_tests.test_upstream_pins_ccxt import asked, candles

BOMB = gzip.compress(b"[" + b"0," * 10_000_000 + b"0]")


def bomb(request: web.Request) -> web.Response:
    return web.Response(body=BOMB, headers={"Content-Encoding": "gzip"})


def got(call: Callable[[aiohttp.ClientResponse], Awaitable[Any]], **session: Any) -> Any:
    """What a call makes of the answer of a server of bombs."""

    async def run() -> Any:
        async with (
            serving(bomb) as url,
            aiohttp.ClientSession(**session) as client,
            client.get(url) as response,
        ):
            return await call(response)

    return asyncio.run(run())


def test_ccxt_reads_bodies_by_the_text_of_its_sessions_response() -> None:
    """In ``fetch``, of a session that ``open`` makes: exchanges.strict puts another in its place."""
    reads: list[str] = []

    class Noting(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            reads.append(self.method)
            return await super().read()

    class Opening(ccxt.async_support.binance):  # type: ignore[misc]
        def open(self, lazy: bool = False) -> None:
            before = self.session
            super().open(lazy)
            if self.session is not before:
                connector = self.session.connector
                self.session.detach()
                self.session = aiohttp.ClientSession(connector=connector, response_class=Noting)

    assert asked(lambda request: web.json_response([]), candles, kind=Opening) == []
    assert reads == ["GET"]


def test_a_session_that_is_detached_leaves_its_connector_open() -> None:
    async def run() -> None:
        first = aiohttp.ClientSession()
        connector = first.connector
        assert connector is not None
        first.detach()
        assert first.closed
        assert not connector.closed
        await connector.close()

    asyncio.run(run())


def test_text_takes_the_body_that_read_left() -> None:
    """``read`` sets ``_body``, and ``text`` decodes it without looking at the connection again."""

    class Cut(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            self._body = await self.content.read(4)
            self.close()
            return self._body

    async def text(response: aiohttp.ClientResponse) -> str:
        return await response.text(errors="replace")

    assert got(text, response_class=Cut) == "[0,0"


def test_reading_a_whole_body_unpacks_it_without_a_bound() -> None:
    """Why the body is read in pieces: a few KB off the wire unpack to 20 MB at once."""

    async def largest(response: aiohttp.ClientResponse) -> int:
        response.content.set_read_chunk_size(2**63 - 1)  # what StreamReader.read() does
        return max([len(piece) async for piece in response.content.iter_any()])

    assert got(largest) > 10_000_000


def test_reading_in_pieces_unpacks_a_piece_at_a_time() -> None:
    """A quarter of a megabyte each, of which a few may wait."""

    async def largest(response: aiohttp.ClientResponse) -> tuple[int, int]:
        pieces = []
        while piece := await response.content.readany():
            pieces.append(len(piece))
        return max(pieces), sum(pieces)

    most, whole = got(largest)
    assert most <= 1_000_000
    assert whole == 20_000_003


def test_compressed_bodies_are_asked_for() -> None:
    """gzip and deflate without further packages; others are refused unless they are installed."""
    seen: list[str] = []

    def handler(request: web.Request) -> web.Response:
        seen.append(request.headers["Accept-Encoding"])
        return web.json_response([])

    asked(handler, candles)
    assert seen[0].startswith("gzip, deflate")


def test_heads_are_bounded() -> None:
    """128 fields; what is more is a ClientResponseError, which exchanges.failures calls BadAnswer."""

    def handler(request: web.Request) -> web.Response:
        return web.json_response([], headers={f"X-{number}": "x" for number in range(200)})

    with pytest.raises(ccxt.ExchangeError) as caught:
        asked(handler, candles)
    assert type(caught.value.__cause__) is aiohttp.ClientResponseError


@pytest.mark.parametrize("depth", [1_024, 1_025])
def test_orjson_refuses_deep_nesting_by_name(depth: int) -> None:
    """exchanges.strict tells it apart from what is no JSON by these words."""
    body = "[" * depth + "]" * depth
    if depth == 1_024:
        assert orjson.loads(body)
    else:
        with pytest.raises(orjson.JSONDecodeError, match="depth limit"):
            orjson.loads(body)
