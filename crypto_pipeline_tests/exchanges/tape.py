"""Tapes of trades on real local servers, served as Kraken and Gemini serve theirs, to the nanosecond.

For what the simulator's own trades do not show: trades that share an instant, lie on a border, or
come in answers that are spoiled in one place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.canned import serving, wrapped

MINUTE_NS = 60_000_000_000
START_NS = 1_700_000_040_000_000_000  # a whole minute: 2023-11-14 22:14 UTC
START = START_NS // 1_000_000
PAIR = "XXBTZUSD"


@dataclass
class Tape:
    """Trades, one an id from 1 on; ``spoil``: by number of the answer, what becomes of it."""

    times_ns: list[int]
    page: int = 10
    spoil: dict[int, Callable[[Any], Any]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)

    def price(self, number: int) -> str:
        return f"{100 + number * 7 % 13}.5"

    def amount(self, number: int) -> str:
        return f"0.{number % 9 + 1}"

    def kraken(self, request: web.Request) -> web.Response:
        since = request.query.get("since")
        numbers = [n for n, time in enumerate(self.times_ns) if time > int(since or 0)]
        numbers = numbers[: self.page] if since else numbers[-self.page :]
        rows = [
            [self.price(n), self.amount(n), self.times_ns[n] / 1e9, "b", "m", "", n + 1]
            for n in numbers
        ]
        last = str(self.times_ns[numbers[-1]]) if numbers else (since or "0")
        return self._answer(request, {"error": [], "result": {PAIR: rows, "last": last}})

    def gemini(self, request: web.Request) -> web.Response:
        """Newest first; milliseconds, and no more."""
        since = request.query.get("timestamp")
        numbers = [n for n, ns in enumerate(self.times_ns) if ns // 10**6 >= int(since or 0)]
        numbers = numbers[: self.page] if since else numbers[-self.page :]
        rows = [
            {
                "timestamp": self.times_ns[n] // 10**9, "timestampms": self.times_ns[n] // 10**6,
                "tid": n + 1, "price": self.price(n), "amount": self.amount(n),
                "exchange": "gemini", "type": "buy",
            }
            for n in reversed(numbers)
        ]  # fmt: skip
        return self._answer(request, rows)

    def _answer(self, request: web.Request, content: Any) -> web.Response:
        number = len(self.asked)
        self.asked.append(dict(request.query))
        if number in self.spoil:
            content = self.spoil[number](content)
        return web.Response(body=orjson.dumps(content), content_type="application/json")


@asynccontextmanager
async def playing(tape: Tape, ccxt_id: str = "kraken") -> AsyncIterator[ExchangeWrapper]:
    handler = {"kraken": tape.kraken, "gemini": tape.gemini}[ccxt_id]
    async with (
        serving(handler) as url,
        wrapped(ccxt_id, url, symbol="BTC/USD", market_id=PAIR) as wrapper,
    ):
        yield wrapper


def rows_of(content: Any) -> list[Any]:
    """The rows inside one of Kraken's answers."""
    rows: list[Any] = content["result"][PAIR]
    return rows
