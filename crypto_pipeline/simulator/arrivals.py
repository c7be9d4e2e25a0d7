"""Who asked what and when: the log that request counts and rate measurements are taken from."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

_MOST_ARRIVALS = 500_000


class Arrival(NamedTuple):
    """One request; the time is the server's real clock in nanoseconds since the epoch."""

    time_ns: int
    exchange: str
    endpoint: str
    symbol: str | None
    params: dict[str, str]
    status: int
    faults: tuple[int, ...]


@dataclass(slots=True)
class Arrivals:
    """The newest requests, and counts of all."""

    log: deque[Arrival] = field(default_factory=lambda: deque(maxlen=_MOST_ARRIVALS))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, arrival: Arrival) -> None:
        """Count and remember a request. ``status`` 0 is a connection that was dropped."""
        self.log.append(arrival)
        self.counts[arrival.exchange, arrival.endpoint] += 1
        self.statuses[arrival.exchange, arrival.status] += 1

    def clear(self) -> None:
        """Forget everything."""
        self.log.clear()
        self.counts.clear()
        self.statuses.clear()

    def counters(self) -> dict[str, dict[str, dict[str, int]]]:
        """``{exchange: {"endpoints": {name: n}, "statuses": {code: n}}}``."""
        table: dict[str, dict[str, dict[str, int]]] = {}
        for (exchange, endpoint), number in self.counts.items():
            entry = table.setdefault(exchange, {"endpoints": {}, "statuses": {}})
            entry["endpoints"][endpoint] = number
        for (exchange, status), number in self.statuses.items():
            table[exchange]["statuses"][str(status)] = number
        return table

    def since(
        self, *, exchange: str | None = None, endpoint: str | None = None, time_ns: int = 0
    ) -> list[Arrival]:
        """Requests after a time, oldest first."""
        return [
            one
            for one in self.log
            if one.time_ns > time_ns
            and exchange in (None, one.exchange)
            and endpoint in (None, one.endpoint)
        ]
