"""The exchange's own clock, measured from its answers."""

from __future__ import annotations

from crypto_pipeline.exchanges.exchanged import Exchanged


class ExchangeClock:
    """Bounds of (exchange clock - our clock), narrowed by each answer's ``Date`` header.

    A ``Date`` of second D, in an answer to a request sent at s and received at r (our clock), says
    that the exchange's clock read between D and D+1 s at some moment between s and r; so the offset
    lies in [D - r, D + 1 s - s]. Where a new answer contradicts the bounds, a clock was set: the new
    answer stands.
    """

    def __init__(self) -> None:
        self._low: int | None = None
        self._high: int | None = None

    def observe(self, exchanged: Exchanged) -> None:
        """Take one answer into account."""
        server = exchanged.server_time
        if server is None:
            return
        low, high = server - exchanged.received_at, server + 1_000 - exchanged.sent_at
        if self._low is not None and self._high is not None:
            both = max(low, self._low), min(high, self._high)
            if both[0] <= both[1]:
                low, high = both
        self._low, self._high = low, high

    @property
    def offset_ms(self) -> int:
        """The least the exchange's clock can be ahead of ours; 0 while nothing is known.

        The least, because finality rests on it: a candle taken for final a second late is read
        again by the next tick, one taken for final too early would be wrong.
        """
        return 0 if self._low is None else self._low
