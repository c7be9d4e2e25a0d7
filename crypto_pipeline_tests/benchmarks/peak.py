"""The most memory a process had, with the child it waits for."""

from __future__ import annotations

import threading
import time
from pathlib import Path


class Peak(threading.Thread):
    """Reads their own word (VmHWM) until the process ends; ``ru_maxrss`` of a child is its parent's.

    The sum of the process's and its largest child's, as a command may wait for another.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._kb = {pid: 0}
        self.start()

    def run(self) -> None:
        while True:
            for child in _read(f"/proc/{self._pid}/task/{self._pid}/children").split():
                self._kb[int(child)] = max(self._kb.get(int(child), 0), _most(int(child)))
            own = _most(self._pid)
            if not own:
                return
            self._kb[self._pid] = own
            time.sleep(0.02)

    @property
    def megabytes(self) -> float:
        """Once it has ended."""
        self.join(1)
        children = [kb for pid, kb in self._kb.items() if pid != self._pid]
        return (self._kb[self._pid] + max(children, default=0)) / 1_024


def _most(pid: int) -> int:
    text = _read(f"/proc/{pid}/status")
    return int(text.split("VmHWM:")[1].split()[0]) if "VmHWM:" in text else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""
