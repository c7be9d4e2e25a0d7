"""Answers that cannot take the process's memory: a body is counted while it is read, unpacked.

aiohttp reads a body whole, and unpacks a compressed one without any bound (`StreamReader.read`
lifts it): 100 KB on the wire can be 100 MB in memory. Here a body is read piece by piece and given
up at its bound; a piece unpacks to a quarter of a megabyte at most. Heads are bounded by aiohttp
(128 fields of 8 KB), time by ``timeout_seconds``, which counts from the request to the last byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from crypto_pipeline.errors import BadAnswer

#: Lists of markets have up to 20 MB.
_MARKETS_BYTES: Final = 32_000_000
#: What is read of an answer that says by its status that it is an error: enough for any reason.
_ERROR_BYTES: Final = 1_000_000
#: Real rows of candles and trades have 50 to 250 bytes. An exchange that does not keep to a limit sends
#: some thousand rows, whatever its page.
_BYTES_OF_ANY_PAGE: Final = 1_000_000
_BYTES_A_ROW: Final = 1_000
#: How many of them must come with each row and each JSON value, of which real ones have 10. Decoded, a
#: value may take 72 bytes where it came with three (``[[],[],…``).
_LEAST_BYTES_A_ROW: Final = 100
_LEAST_BYTES_A_VALUE: Final = 8

#: For errors about it.
HINT: Final = (
    "nothing, if it passes: the next tick asks again. If it stays, and the exchange's answers are truly"
    " that large, set answer_megabytes of this exchange in pipeline.yaml to what they need."
)


@dataclass(frozen=True)
class Bound:
    """How large an answer may be.

    Attributes:
        bytes: of its body, unpacked.
    """

    bytes: int

    @classmethod
    def of_markets(cls) -> Bound:
        """The bound of a list of markets."""
        return cls(_MARKETS_BYTES)

    @classmethod
    def of_page(cls, page: int) -> Bound:
        """The bound of a page of candles or trades."""
        return cls(_BYTES_OF_ANY_PAGE + page * _BYTES_A_ROW)

    @property
    def rows(self) -> int:
        """How many candles or trades it may hold."""
        return self.bytes // _LEAST_BYTES_A_ROW

    @property
    def values(self) -> int:
        """How many values a JSON body may hold."""
        return self.bytes // _LEAST_BYTES_A_VALUE

    def broken_by(self, body: str) -> str | None:
        """What is wrong with a body whose values, decoded, take too much memory."""
        if len(body) <= self.values:
            return None
        values = sum(map(body.count, ",[{"))
        if values <= self.values:
            return None
        return f"{values:,} JSON values, where {self.values:,} are allowed"


def bounded_session(
    session: aiohttp.ClientSession, bound: Callable[[], Bound]
) -> aiohttp.ClientSession:
    """The session with bounded answers, on the same connections.

    Args:
        session: one that nothing was asked with; it is closed by this.
        bound: of the answer that is being read.
    """

    class BoundedResponse(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            """The body, unpacked; of an error its beginning.

            Raises:
                BadAnswer: it is larger than its bound.
            """
            if self._body is None:
                try:
                    self._body = await _read(self, bound())
                except BaseException:
                    self.close()
                    raise
                if not self.content.at_eof():
                    self.close()
                    return self._body
            return await super().read()

    connector, trust_env = session.connector, session.trust_env
    session.detach()
    return aiohttp.ClientSession(
        connector=connector, trust_env=trust_env, response_class=BoundedResponse
    )


async def _read(response: aiohttp.ClientResponse, bound: Bound) -> bytes:
    good = 200 <= response.status < 300
    declared = response.content_length
    if good and declared is not None and declared > bound.bytes:
        raise _too_large(response, f"{declared:,} bytes, where {bound.bytes:,} are allowed")
    body = bytearray()
    while piece := await response.content.readany():
        body += piece
        if not good and len(body) > _ERROR_BYTES:
            return bytes(body[:_ERROR_BYTES])  # its status counts, whatever else it would say
        if len(body) > bound.bytes:
            raise _too_large(response, f"more than the {bound.bytes:,} bytes allowed")
    return bytes(body)


def _too_large(response: aiohttp.ClientResponse, size: str) -> BadAnswer:
    return BadAnswer(
        f"HTTP {response.status} with a body of {size}",
        hint=HINT,
        http_status=response.status,
    )
