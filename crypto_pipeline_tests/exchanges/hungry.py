"""A process that asks a simulated exchange and tells what it took: memory has to be its own.

``python -m crypto_pipeline_tests.exchanges.hungry`` reads a request a line, and says of each what
came of it, how many MB the process grew by at its highest, and how many seconds it took.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

PROCESS = Path("/proc/self")


def memory_mb(name: str) -> float:
    """This process's resident memory (VmRSS), or its peak (VmHWM)."""
    lines = (PROCESS / "status").read_text(encoding="ascii").splitlines()
    (kb,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(kb) / 1_000


def forget_peak() -> None:
    """Let the peak be the memory of now."""
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")


class Hungry:
    """The process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, config: ExchangeConfig, *, markets: bool, at: int) -> dict[str, Any]:
        """Load the markets, and ask for a window unless it is all about the markets."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "config": config.model_dump(mode="json", exclude_unset=True),
            "markets": markets,
            "at": at,
        }
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@contextmanager
def hungry_process() -> Iterator[Hungry]:
    command = [sys.executable, "-m", "crypto_pipeline_tests.exchanges.hungry"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield Hungry(process)
        finally:
            process.kill()


async def _asked(job: dict[str, Any]) -> dict[str, Any]:
    config = ExchangeConfig.model_validate(job["config"])
    window = Interval(job["at"] - 1_800_000, job["at"] - 600_000)
    async with ExchangeWrapper(
        key=config.ccxt_id, config=config, clock=lambda: job["at"]
    ) as wrapper:
        wrapper._ccxt.timeout_on_exit = 0
        if not job["markets"]:
            await wrapper.load_markets()
        forget_peak()
        before, began = memory_mb("VmRSS"), time.monotonic()
        told: dict[str, Any] = {"error": None}
        try:
            if job["markets"]:
                await wrapper.load_markets()
            else:
                answer = await wrapper.fetch(Series(config.symbols[0], "1m"), window)
                told["rows"] = len(answer.rows)
        except Exception as error:  # noqa: BLE001 - whatever comes is told
            told = {
                "error": type(error).__name__,
                "text": str(error),
                "status": getattr(error, "http_status", None),
                "rerun_helps": getattr(error, "rerun_helps", None),
            }
        told["seconds"] = time.monotonic() - began
        told["grown_mb"] = memory_mb("VmHWM") - before
    return told


def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asyncio.run(_asked(json.loads(line)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
