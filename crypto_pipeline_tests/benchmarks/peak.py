"""The most memory a process had."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Peak(threading.Thread):
    """Reads a process's own word (VmHWM) until it ends; ``ru_maxrss`` of a child is its parent's."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self._kb = 0
        self.start()

    def run(self) -> None:
        while True:
            try:
                text = self._status.read_text()
            except OSError:
                return
            if "VmHWM:" not in text:
                return
            self._kb = int(text.split("VmHWM:")[1].split()[0])
            time.sleep(0.02)

    @property
    def megabytes(self) -> float:
        """Once it has ended."""
        self.join(1)
        return self._kb / 1_024
