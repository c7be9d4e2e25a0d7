"""When a request may go out: what a budget shared by all processes offers an exchange's requests.

The budget itself is kept in the database (:mod:`crypto_pipeline.database.budget`); this is the shape
the wrapper asks for, so that it needs no database to be tested or to check a configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


@dataclass
class PaceCounts:
    """What a budget did for one run.

    Attributes:
        requests: granted.
        waited_seconds: spent waiting for them.
        refused: answers that said "too often".
    """

    requests: int = 0
    waited_seconds: float = 0.0
    refused: int = 0


class Pacer(Protocol):
    """A budget of requests."""

    counts: PaceCounts

    async def acquire(self, cost_ms: float) -> None:
        """Wait until a request that takes so much of the budget may go out.

        Raises:
            RateLimited: the exchange asked for a pause that is too long to wait for.
            ExchangeBlocked: it does not serve this address, as another process found.
            DatabaseError: the budget cannot be asked; without it nothing goes out.
        """

    async def __aenter__(self) -> object:
        """Begin to use it."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Note what was used."""

    async def denied(self, reason: str) -> None:
        """Stop every process for a long while: the exchange does not serve this address at all."""

    async def refused(self, *, retry_after: float | None, banned: bool) -> None:
        """Stop every process for as long as the exchange asks, or longer if it asks repeatedly.

        Args:
            retry_after: seconds the exchange asked to wait; None if it did not say.
            banned: it refused the address, not the request.
        """
