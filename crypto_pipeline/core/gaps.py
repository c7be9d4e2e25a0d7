"""Why a candle is missing: the causes, and the record kept of each gap.

The shapes only; :mod:`crypto_pipeline.core.ledger` finds the gaps of a partition and their causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Cause = Literal[
    "no_trades",  # proven: answered, candles on both sides, and quiet minutes are left out there
    "exchange_outage",  # proven: every symbol of the exchange was silent
    "not_listed_yet",  # proven: before the first candle the exchange has of the symbol
    "delisted",  # proven: after its last one, and the exchange no longer trades the symbol
    "beyond_history",  # older than the exchange serves, by candles or by trades
    "fetch_failed",  # asked for, and the request failed
    "rejected",  # came, and broke a rule
    "unknown",  # not asked for yet, or answered without it and without a reason
]
CAUSES: Final[tuple[Cause, ...]] = get_args(Cause)

#: Nothing more can be done about a gap of these causes; a partition with no others is complete.
PROVEN: Final[frozenset[Cause]] = frozenset(
    {"no_trades", "exchange_outage", "not_listed_yet", "delisted", "beyond_history"}
)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A missing interval ``[start, end)`` of one series, inside one UTC day. Times in ms.

    Attributes:
        evidence: what the cause rests on, as a sentence.
        first_seen: when it was first found missing, our clock.
        last_checked: when the exchange was last asked for it, our clock; None if never.
        next_retry: when to ask again; None where the cause is proven.
    """

    symbol: str
    timeframe: str
    start: int
    end: int
    cause: Cause
    evidence: str
    first_seen: int
    last_checked: int | None = None
    next_retry: int | None = None


@dataclass(frozen=True, kw_only=True)
class PartitionState:
    """How complete a partition is. Counts are candles of all its series; times in ms, our clock.

    Attributes:
        expected: candles that are due.
        stored: of those, how many the table holds.
        missing: the others, by cause.
        answered_at: when the exchange last answered about it; None if never.
        checked_at: when this was found.
    """

    expected: int
    stored: int
    missing: Mapping[Cause, int]
    answered_at: int | None
    checked_at: int

    @property
    def unproven(self) -> int:
        """Missing candles without a proven cause."""
        return sum(count for cause, count in self.missing.items() if cause not in PROVEN)

    @property
    def complete(self) -> bool:
        """Every candle that is due is stored, or its absence is proven."""
        return not self.unproven and self.stored + sum(self.missing.values()) == self.expected
