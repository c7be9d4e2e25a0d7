"""Running the simulator: in the foreground, or as a child process that dies with its parent."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, cast

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.simulator.client import SimulatorControl
from crypto_pipeline.simulator.config import SimulatorConfig
from crypto_pipeline.simulator.server import Simulator
from crypto_pipeline.simulator.truth import Truth
from crypto_pipeline.simulator.urls import ccxt_urls

_READY_SECONDS = 30
_STOP_SECONDS = 5


def serve(
    config: SimulatorConfig,
    *,
    port: int,
    host: str = "127.0.0.1",
    on_ready: Callable[[Simulator], None] | None = None,
    until_eof: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM (or, with ``until_eof``, until stdin ends).

    Raises:
        ConfigError: a file to replay is missing or wrong.
        LocalServiceError: the port is taken.
    """
    simulator = Simulator(config)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows event loops
                loop.add_signal_handler(number, done.set)
        try:
            await simulator.start(port=port, host=host)
        except OSError as error:
            raise LocalServiceError(
                f"The simulator cannot listen on {host}:{port}: {error}",
                hint="Stop what uses the port, or choose another one.",
            ) from error
        try:
            if until_eof:
                _call_at_eof(lambda: loop.call_soon_threadsafe(done.set))
            if on_ready is not None:
                on_ready(simulator)
            await done.wait()
        finally:
            await simulator.stop()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())


@dataclass(frozen=True)
class SimulatorHandle:
    """A simulator in a process of its own."""

    config: SimulatorConfig
    base_url: str
    urls: dict[str, str]
    pid: int

    @cached_property
    def control(self) -> SimulatorControl:
        """Faults, clock, counters."""
        return SimulatorControl(self.base_url)

    @cached_property
    def truth(self) -> Truth:
        """What the exchanges truly have."""
        return Truth(self.config)

    def ccxt_config(self, key: str, *, ccxt_id: str | None = None) -> dict[str, Any]:
        """For ccxt's constructor: the simulator's URLs, and no rate limit of ccxt's own."""
        return {"urls": ccxt_urls(ccxt_id or key, self.urls[key]), "enableRateLimit": False}


@contextmanager
def running_simulator(config: SimulatorConfig, *, port: int = 0) -> Iterator[SimulatorHandle]:
    """Run the simulator as a real process on a free port; it also ends if this process dies.

    Raises:
        LocalServiceError: it does not start; the message holds what it said.
    """
    command = [sys.executable, "-m", "crypto_pipeline.simulator", "--child", "--port", str(port)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches only the parent, which then stops it in order
    ) as process:
        try:
            ready = _wait_ready(process, config)
            yield SimulatorHandle(config, ready["base_url"], ready["urls"], process.pid)
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[str], config: SimulatorConfig) -> dict[str, Any]:
    stdin, stdout = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
    timer = threading.Timer(_READY_SECONDS, process.kill)
    timer.start()
    try:
        with suppress(BrokenPipeError):
            stdin.write(config.model_dump_json() + "\n")
            stdin.flush()
        line = stdout.readline()
    finally:
        timer.cancel()
    ready: dict[str, Any] = json.loads(line) if line else {"error": "see what it wrote to stderr."}
    if "error" in ready:
        raise LocalServiceError(f"The simulator did not start: {ready['error']}")
    return ready


def _stop(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _call_at_eof(callback: Callable[[], object]) -> None:
    def watch() -> None:
        sys.stdin.read()
        callback()

    threading.Thread(target=watch, daemon=True).start()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop (uvloop) where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    return uvloop.new_event_loop
