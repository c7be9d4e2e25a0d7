"""One request and its reply, left for the caller of this very request: no concurrent one shares it."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any


@dataclass
class Exchanged:
    """One request and its reply, as seen on the wire. Times in ms of our clock.

    An answer is as old as its request: between the two this process may have been stopped, or the
    answer may have been long on its way, and its last candle is then not what it became.
    """

    cost_ms: float | None = None  # of the budget; None as ccxt says
    sent_at: int = 0
    received_at: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    not_decoded: str | None = None  # why a JSON body was left alone
    rows: list[Any] | None = None

    def header(self, name: str) -> str | None:
        """A header's value, whatever its case."""
        wanted = name.lower()
        return next((v for k, v in self.headers.items() if k.lower() == wanted), None)

    @property
    def retry_after(self) -> float | None:
        """Seconds the exchange asked us to wait; None if it did not say."""
        text = self.header("Retry-After")
        try:
            seconds = float(text or "nan")
        except ValueError:
            return None  # the HTTP-date form: no exchange in the table sends it
        return max(0.0, seconds) if math.isfinite(seconds) else None

    @property
    def server_time(self) -> int | None:
        """The second named by the ``Date`` header, ms; None without a readable one."""
        text = self.header("Date")
        try:
            date = None if text is None else parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        if date is None:
            return None
        # HTTP dates are UTC; one that says "-0000" comes without a zone
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()) * 1_000

    def restart(self, sent_at: int) -> None:
        """Forget an earlier request of the same call, such as the one for the markets."""
        self.sent_at, self.received_at = sent_at, 0
        self.status, self.headers, self.body, self.rows = None, {}, None, None
        self.not_decoded = None


CURRENT: ContextVar[Exchanged | None] = ContextVar("crypto_pipeline_exchanged", default=None)
