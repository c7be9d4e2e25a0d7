"""HTTP/1.1 on a socket: as much of it as clients on this machine need, and nothing in between.

A general server spends more on a page than the page itself; this one joins no buffers, and closes a
connection exactly where a fault says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Literal, cast
from urllib.parse import unquote_plus

import orjson

logger = logging.getLogger(__name__)

Buffer = bytes | memoryview
_HEAD_END = b"\r\n\r\n"
_LONGEST_HEAD = 65_536
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_FAILED = "The simulator failed on %s %s"


@dataclass(slots=True)
class HttpRequest:
    """One request; ``path`` has no leading slash and is not decoded."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """One answer.

    Attributes:
        body: whole, or in pieces that are sent one after the other.
        drop: close the connection "before" anything is sent, or "mid_body".
        chunked: send it in chunks, without saying how long it is.
        pause: seconds after which the body is sent again, and so on for ever; only if chunked.
        interims: how many "100 Continue" come before it.
    """

    body: Buffer | Sequence[Buffer] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    drop: Literal["before", "mid_body"] | None = None
    chunked: bool = False
    pause: float | None = None
    interims: int = 0

    @classmethod
    def json(cls, content: object, *, status: int = 200) -> Answer:
        """An answer with a JSON body."""
        return cls(orjson.dumps(content), status)

    @property
    def pieces(self) -> Sequence[Buffer]:
        """The body in pieces."""
        return (self.body,) if isinstance(self.body, bytes | memoryview) else self.body

    @property
    def whole(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.pieces)


Handler = Callable[[HttpRequest], Answer | Awaitable[Answer]]


@dataclass(slots=True)
class Listener:
    """One listening port and its connections."""

    handler: Handler
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (a free one for 0).

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self.handler, self._connections), host, port, backlog=1_024
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Refuse new connections and close those there are."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.close()
        await self._server.wait_closed()
        self._server = None


class _Connection(asyncio.Protocol):
    """One client: requests are answered one after the other, in order."""

    def __init__(self, handler: Handler, connections: set[_Connection]) -> None:
        self._handler = handler
        self._connections = connections
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._connections.discard(self)
        self._transport = None
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._advance()

    def _advance(self) -> None:
        """Answer every request that has arrived whole, until one needs time."""
        while self._task is None and self._transport is not None:
            try:
                request, self._received = _next_request(self._received)
            except (ValueError, IndexError):
                self._send(Answer.json({"error": "not an HTTP request"}, status=400))
                self.close()
                return
            if request is None:
                return
            try:
                result = self._handler(request)
            except Exception:  # whatever it is, the client is answered and the server lives on
                logger.exception(_FAILED, request.method, request.path)
                result = Answer.json({"error": "the simulator failed; see its log"}, status=500)
            if isinstance(result, Answer):
                self._send(result)
            else:
                self._later(self._when_there(request, result))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    async def _when_there(self, request: HttpRequest, result: Awaitable[Answer]) -> None:
        try:
            answer = await result
        except Exception:  # as above
            logger.exception(_FAILED, request.method, request.path)
            answer = Answer.json({"error": "the simulator failed; see its log"}, status=500)
        self._task = None
        self._send(answer)
        self._advance()

    def _send(self, answer: Answer) -> None:
        transport = self._transport
        if transport is None:
            return
        if answer.drop == "before":
            transport.close()
            return
        pieces = answer.pieces
        head = _head(answer, sum(map(len, pieces)))
        if answer.drop == "mid_body":
            whole = answer.whole
            transport.writelines([head, whole[: len(whole) // 2]])
            transport.close()
            return
        if answer.chunked:
            transport.write(head)
            self._later(self._chunks(b"".join(_chunk(piece) for piece in pieces), answer.pause))
            return
        transport.writelines([_INTERIM * answer.interims, head, *pieces])

    async def _chunks(self, chunks: bytes, pause: float | None) -> None:
        """Send the chunks, once or for ever, no faster than they are read."""
        while self._transport is not None:
            self._transport.write(chunks)
            if pause is None:
                self._transport.write(_LAST_CHUNK)
                break
            await asyncio.sleep(pause)
            await self._writable.wait()
        self._task = None
        self._advance()


def _next_request(received: bytes) -> tuple[HttpRequest | None, bytes]:
    """The first whole request and what follows it; None while it is not whole.

    Raises:
        ValueError: this is not HTTP.
    """
    end = received.find(_HEAD_END)
    if end < 0:
        if len(received) > _LONGEST_HEAD:
            raise ValueError("no end of the head")
        return None, received
    head = received[:end].decode("latin-1")
    first, _, fields = head.partition("\r\n")
    method, target, _ = first.split(" ")
    body_end = end + len(_HEAD_END) + _content_length(fields)
    if len(received) < body_end:
        return None, received
    path, _, query = target.partition("?")
    body = received[end + len(_HEAD_END) : body_end]
    return HttpRequest(method, path.lstrip("/"), _parse_query(query), body), received[body_end:]


def _content_length(fields: str) -> int:
    at = fields.lower().find("content-length:")
    return int(fields[at + 15 :].partition("\r\n")[0]) if at >= 0 else 0


def _parse_query(query: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in query.split("&") if pair)
    if "%" in query or "+" in query:
        return {unquote_plus(name): unquote_plus(value) for name, _, value in pairs}
    return {name: value for name, _, value in pairs}


def _head(answer: Answer, length: int) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {_reason(answer.status)}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    if answer.status != HTTPStatus.NO_CONTENT:
        size = "Transfer-Encoding: chunked" if answer.chunked else f"Content-Length: {length}"
        lines.append(f"Content-Type: {answer.content_type}\r\n{size}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _chunk(piece: Buffer) -> bytes:
    return b"".join([b"%x\r\n" % len(piece), piece, b"\r\n"])


@lru_cache
def _reason(status: int) -> str:
    with suppress(ValueError):
        return HTTPStatus(status).phrase
    return "Unknown"
