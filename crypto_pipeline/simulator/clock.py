"""The simulated time: real, shifted, frozen or faster."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from crypto_pipeline.simulator.config import ClockConfig


@dataclass(slots=True)
class Clock:
    """One time line for all exchanges, in Unix milliseconds (UTC)."""

    config: ClockConfig
    _set_at_ns: int = field(default_factory=time.time_ns)

    def set(self, config: ClockConfig) -> None:
        """Continue by another rule; ``starts_at`` counts from this call."""
        self.config = config
        self._set_at_ns = time.time_ns()

    def now_ms(self) -> float:
        """The time on this time line."""
        if self.config.frozen_at is not None:
            return float(self.config.frozen_at)
        start_ms = self._set_at_ns / 1e6 if self.config.starts_at is None else self.config.starts_at
        return start_ms + (time.time_ns() - self._set_at_ns) / 1e6 * self.config.speed
