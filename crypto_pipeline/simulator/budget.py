"""The budget an exchange enforces: weight a minute, then "too many", then a ban.

Minutes are those of the real clock, since clients wait in real time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from crypto_pipeline.simulator.config import BudgetConfig


@dataclass(slots=True)
class Refusal:
    """Why a request is refused: wait this many seconds; ``banned`` if it is a ban."""

    retry_after: int
    banned: bool


@dataclass(slots=True)
class Budget:
    """Weight used in the current minute, and what follows from it."""

    config: BudgetConfig | None
    used: int = 0
    _minute: int = -1
    _refused: int = 0
    _banned_until: float = 0

    def charge(self, weight: int) -> Refusal | None:
        """Charge a request; the refusal if it may not pass (it is charged all the same)."""
        now = time.time()
        minute = int(now // 60)
        if minute != self._minute:
            self._minute, self.used, self._refused = minute, 0, 0
        self.used += weight
        config = self.config
        if config is None:
            return None
        if now < self._banned_until:
            return Refusal(_whole_seconds(self._banned_until - now), banned=True)
        if self.used <= config.weight_per_minute:
            return None
        self._refused += 1
        if config.ban_after is not None and self._refused > config.ban_after:
            self._banned_until = now + config.ban_seconds
            return Refusal(_whole_seconds(config.ban_seconds), banned=True)
        return Refusal(_whole_seconds((minute + 1) * 60 - now), banned=False)

    def reset(self, config: BudgetConfig | None) -> None:
        """Start afresh under another budget."""
        self.config = config
        self.used = self._refused = 0
        self._banned_until = 0


def _whole_seconds(seconds: float) -> int:
    return int(seconds) + 1
