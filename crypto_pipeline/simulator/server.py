"""The exchanges on their ports, faults included.

Every exchange is at ``/<key>/…`` of the common port, or of its own port if it has one. The control
endpoint ``/_control/…`` is on the common port.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Self

from crypto_pipeline.simulator.arrivals import Arrival, Arrivals
from crypto_pipeline.simulator.clock import Clock
from crypto_pipeline.simulator.config import SimulatorConfig
from crypto_pipeline.simulator.control import handle_control
from crypto_pipeline.simulator.dialects import Route, make_dialect
from crypto_pipeline.simulator.exchange import SimulatedExchange
from crypto_pipeline.simulator.faults import HOSTILE, Fault, FaultBook
from crypto_pipeline.simulator.hostile import hostile_answer
from crypto_pipeline.simulator.pages import BlockCache
from crypto_pipeline.simulator.spoiling import renamed_pair, spoiled_candles
from crypto_pipeline.simulator.truth import Truth
from crypto_pipeline.simulator.wire import Answer, Handler, HttpRequest, Listener

_HOST = "127.0.0.1"
_DROPPED = 0  # the "status" in the log of an answer that never came whole


class Simulator:
    """All exchanges and their faults. Use as an async context manager, or `start` and `stop`.

    Raises:
        ConfigError: a file to replay is missing or wrong.
    """

    def __init__(self, config: SimulatorConfig, *, truth: Truth | None = None) -> None:
        self.config = config
        self.truth = truth or Truth(config)
        self.clock = Clock(config.clock)
        self.faults = FaultBook()
        self.arrivals = Arrivals()
        cache = BlockCache(config.cache_megabytes * 1_000_000)
        self.exchanges = {
            key: SimulatedExchange(
                key,
                exchange,
                make_dialect(config.dialect_of(key), exchange.symbols),
                self.truth,
                self.clock,
                cache,
            )
            for key, exchange in config.exchanges.items()
        }
        self.port = 0
        self._own_ports: dict[str, int] = {}
        self._listeners: dict[str | None, Listener] = {}
        self._held: dict[str, socket.socket] = {}

    async def start(self, *, port: int = 0, host: str = _HOST) -> int:
        """Listen; the common port (a free one for 0).

        Raises:
            OSError: a port is taken.
        """
        listener = self._listeners[None] = Listener(self._handle)
        self.port = await listener.start(host, port)
        for key in self.exchanges:
            await self.start_listening(key)
        return self.port

    async def stop(self) -> None:
        """Close every connection and port."""
        while self._listeners:
            await self._listeners.popitem()[1].stop()
        while self._held:
            self._held.popitem()[1].close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start_listening(self, key: str) -> None:
        """Open an exchange's own port, the same one as before; nothing for one without."""
        wanted = self.config.exchanges[key].port
        if wanted is None or key in self._listeners:
            return
        listener = Listener(self._handler_of(key))
        port = await listener.start(_HOST, self._own_ports.get(key, wanted))
        self._listeners[key], self._own_ports[key] = listener, port
        if key in self._held:
            self._held.pop(key).close()

    async def stop_listening(self, key: str) -> None:
        """Refuse connections to an exchange that has its own port, and close those it has."""
        listener = self._listeners.pop(key, None)
        if listener is not None:
            await listener.stop()
            self._held[key] = _bound(self._own_ports[key])

    def base_url(self, key: str) -> str:
        """Where an exchange is mounted."""
        return f"http://{_HOST}:{self._own_ports.get(key, self.port)}/{key}"

    def reset(self) -> None:
        """Forget faults and requests; clocks, latencies and budgets as configured."""
        self.faults.clear()
        self.arrivals.clear()
        self.clock.set(self.config.clock)
        for exchange in self.exchanges.values():
            exchange.reset()

    def _handle(self, request: HttpRequest) -> Answer | Awaitable[Answer]:
        """The common port."""
        key, _, path = request.path.partition("/")
        exchange = self.exchanges.get(key)
        if exchange is not None and exchange.config.port is None:
            return self._serve(request, exchange, path)
        if key == "_control":
            return handle_control(self, request, path)
        return Answer.json({"error": f"nothing is mounted at /{key}"}, status=404)

    def _handler_of(self, own_key: str) -> Handler:
        def handle(request: HttpRequest) -> Answer | Awaitable[Answer]:
            key, _, path = request.path.partition("/")
            if key == own_key:
                return self._serve(request, self.exchanges[key], path)
            return Answer.json({"error": f"nothing is mounted at /{key}"}, status=404)

        return handle

    def _serve(
        self, request: HttpRequest, exchange: SimulatedExchange, path: str
    ) -> Answer | Awaitable[Answer]:
        arrived_ns = time.time_ns()
        params = request.query
        route = exchange.dialect.route(path, params)
        faults = self.faults.hitting(exchange.key, route.endpoint, route.symbol, params)

        def answer() -> Answer:
            made = _answer(exchange, path, params, route)
            for fault in faults:
                made = _faulty(made, fault, exchange, route)
            made.headers.setdefault("Date", _http_date(int(exchange.now_ms() // 1_000)))
            status = made.status if made.drop is None else _DROPPED
            hit = tuple(fault.id for fault in faults)
            self.arrivals.add(
                Arrival(arrived_ns, exchange.key, route.endpoint, route.symbol, params, status, hit)
            )
            return made

        latency = exchange.latency + sum(fault.latency for fault in faults)
        return _after(latency, answer) if latency else answer()


async def _after(seconds: float, answer: Callable[[], Answer]) -> Answer:
    await asyncio.sleep(seconds)
    return answer()


def _answer(exchange: SimulatedExchange, path: str, params: dict[str, str], route: Route) -> Answer:
    """The answer of a healthy exchange, or its refusal of a client over its budget."""
    dialect, budget = exchange.dialect, exchange.budget
    refusal = budget.charge(dialect.weight(route.endpoint))
    if refusal is None or budget.config is None:
        answer = dialect.answer(path, params, route, exchange)
    else:
        until = exchange.now_ms() + refusal.retry_after * 1_000 if refusal.banned else None
        answer = dialect.too_many(
            limit=budget.config.weight_per_minute,
            retry_after=refusal.retry_after,
            banned_until_ms=until,
        )
    answer.headers.update(dialect.usage_headers(budget.used))
    return answer


def _faulty(answer: Answer, fault: Fault, exchange: SimulatedExchange, route: Route) -> Answer:
    """The answer as a fault leaves it."""
    match fault.act:
        case "status" | "body":
            answer = Answer(fault.text.encode(), fault.status or 200, dict(fault.headers))
            answer.content_type = fault.content_type
        case "no_content":
            answer = Answer(b"", 204)
        case "cut_json":
            answer.body = _half(answer.whole)
        case "cut_gzip":
            answer.body = _half(gzip.compress(answer.whole))
            answer.headers["Content-Encoding"] = "gzip"
        case "drop":
            answer.drop = "before"
        case "drop_mid_body":
            answer.drop = "mid_body"
        case "wrong_pair":
            answer.body = renamed_pair(answer.whole, fault.pair)
        case "bad_candles" if route.endpoint == "candles" and answer.status == 200:
            answer.body = spoiled_candles(answer.whole, fault, exchange.dialect)
        case act if act in HOSTILE:
            answer = hostile_answer(answer, fault, exchange.dialect)
    return answer


def _half(body: bytes) -> bytes:
    return body[: len(body) // 2]


@lru_cache(maxsize=256)
def _http_date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)


def _bound(port: int) -> socket.socket:
    """Who connects to it is refused, and nobody else is given the port meanwhile."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((_HOST, port))
    return bound
