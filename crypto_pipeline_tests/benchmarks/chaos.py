"""What a soak does to a deployment, one named fault at a time."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psutil
import psycopg

from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.simulator import SimulatorHandle
from crypto_pipeline_tests.benchmarks.supervised import Supervised

#: How long what is not a sudden death lasts.
SECONDS = 35.0

EXCHANGE_FAULTS: dict[str, dict[str, Any]] = {
    "exchange: 503": {"act": "status", "status": 503},
    "exchange: 429": {"act": "status", "status": 429, "headers": {"Retry-After": "2"}},
    "exchange: HTML": {"act": "body", "body": "html"},
    "exchange: cut JSON": {"act": "cut_json"},
    "exchange: reset in mid body": {"act": "drop_mid_body"},
    "exchange: hangs": {"act": "delay", "latency": 15, "probability": 0.5, "seed": 1},
    "exchange: spoiled rows": {"act": "bad_candles", "spoil": "high_below_low"},
}


class Chaos:
    """Faults of one deployment and its exchanges."""

    def __init__(
        self, deployment: Supervised, simulator: SimulatorHandle, chance: random.Random
    ) -> None:
        self._deployment = deployment
        self._control = simulator.control
        self._exchanges = sorted(simulator.config.exchanges)
        self._chance = chance
        self._later: list[threading.Timer] = []

    def act(self, name: str) -> str:
        """Do it; what was done to whom."""
        return FAULTS[name](self)

    def over(self) -> None:
        """All that lasts is over."""
        for timer in self._later:
            timer.join()
        self._control.clear_faults()
        for exchange in self._exchanges:
            self._control.set_clock_offset(exchange, 0)
            self._control.start_listening(exchange)

    def _after(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        def quietly() -> None:
            with suppress(psutil.Error, CryptoPipelineError):
                call(*arguments)

        timer = threading.Timer(seconds, quietly)
        timer.start()
        self._later.append(timer)

    def kill(self, *roles: str) -> str:
        processes = self._deployment.by_role()
        hit = []
        for role in roles:
            for process in processes.get(role, ()):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    hit.append(f"{role} {process.pid}")
        return ", ".join(hit) or "there was none"

    def kill_a_run(self) -> str:
        """In the seconds in which runs are there: at any point of theirs."""
        run = self._chance.choice(self._runs() or [None])
        if run is None:
            return "there was none"
        time.sleep(self._chance.uniform(0, 1.5))  # longer than a minute run takes by itself
        with suppress(psutil.NoSuchProcess):
            run.kill()
            return f"run {run.pid}"
        return f"run {run.pid} had just ended"

    def kill_all_runs(self) -> str:
        runs = self._runs()
        time.sleep(self._chance.uniform(0, 0.5))
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.kill()
        return f"{len(runs)} runs"

    def _runs(self) -> list[psutil.Process]:
        """Those there are as soon as there are any."""
        deadline = time.monotonic() + 65
        while time.monotonic() < deadline:
            if runs := self._deployment.by_role().get("run"):
                return runs
            time.sleep(0.1)
        return []

    def stop_runs(self) -> str:
        runs = self._runs()
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.suspend()
            self._after(SECONDS, run.resume)
        return f"{len(runs)} runs"

    def signal_postmaster(self, number: int) -> str:
        postmaster = self._deployment.postmaster()
        if postmaster is None:
            return "there was none"
        postmaster.send_signal(number)
        return f"postmaster {postmaster.pid}"

    def kill_a_backend(self) -> str:
        """Of a client's session, so that the server recovers from a crash."""
        try:
            found = self._deployment.rows(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
                " AND pid <> pg_backend_pid()"
            )
        except (CryptoPipelineError, psycopg.Error):
            return "the database was away"
        if not found:
            return "there was none"
        (pid,) = self._chance.choice(found)
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        return f"backend {pid}"

    def kill_everything(self) -> str:
        """As a power cut does, as far as processes go."""
        up = self._deployment.process
        if up is not None:
            up.kill()
        for process in self._deployment.family():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        postmaster = self._deployment.postmaster()
        with suppress(psutil.Error):
            if postmaster is not None:
                for process in [postmaster, *postmaster.children(recursive=True)]:
                    process.kill()
        return "all processes"

    def up(self, number: int) -> str:
        process = self._deployment.process
        if process is None or process.poll() is not None:
            return "there was none"
        process.send_signal(number)
        return f"up {process.pid}"

    def lake_away(self) -> str:
        """A file stands where the lake was, so nothing can be read or written."""
        lake, away = self._deployment.home / "lake", self._deployment.home / "lake.away"

        def back() -> None:
            lake.unlink()
            away.rename(lake)

        lake.mkdir(exist_ok=True)  # none has been made before the first tick
        lake.rename(away)
        while True:
            try:
                lake.open("x").close()
                break
            except FileExistsError:  # a run was quicker, and made a new one
                shutil.rmtree(lake, ignore_errors=True)
        self._after(SECONDS, back)
        return f"for {SECONDS:.0f} s"

    def exchange_down(self) -> str:
        exchange = self._chance.choice(self._exchanges)
        self._control.stop_listening(exchange)
        self._after(SECONDS * 3, self._control.start_listening, exchange)
        return exchange

    def exchange_clock(self) -> str:
        exchange = self._chance.choice(self._exchanges)
        seconds = self._chance.choice([-90.0, -20.0, 20.0, 90.0])
        self._control.set_clock_offset(exchange, seconds)
        self._after(SECONDS, self._control.set_clock_offset, exchange, 0)
        return f"{exchange} by {seconds:.0f} s"

    def exchange_fault(self, fault: dict[str, Any]) -> str:
        exchange = self._chance.choice(self._exchanges)
        number = self._control.add_fault(exchange=exchange, **fault)
        self._after(SECONDS, self._control.clear_faults, number)
        return f"{exchange} for {SECONDS:.0f} s"

    def backfill(self) -> str:
        """Ask for what is there, over partitions others may be busy with."""
        today = datetime.now(UTC).date()
        keys = [f"{today}|{exchange}" for exchange in self._exchanges]
        try:
            return self._deployment.webserver.launch_backfill(
                ["raw_ohlcv", "validated_ohlcv", "timescale_candles"], keys
            )
        except CryptoPipelineError as error:
            return f"refused: {error}"


FAULTS: dict[str, Callable[[Chaos], str]] = {
    "kill a run": Chaos.kill_a_run,
    "kill a run again": Chaos.kill_a_run,
    "kill all runs": Chaos.kill_all_runs,
    "stop runs": Chaos.stop_runs,
    "kill code server": lambda chaos: chaos.kill("code server"),
    "kill code server proxy": lambda chaos: chaos.kill("code server proxy"),
    "kill code servers and runs": lambda chaos: chaos.kill(
        "run", "code server proxy", "code server"
    ),
    "kill nursery": lambda chaos: chaos.kill("nursery"),
    "kill daemon": lambda chaos: chaos.kill("daemon"),
    "kill webserver": lambda chaos: chaos.kill("webserver"),
    "kill dagster dev": lambda chaos: chaos.kill("dagster dev"),
    "kill up": lambda chaos: chaos.up(signal.SIGKILL),
    "stop up in order": lambda chaos: chaos.up(signal.SIGTERM),
    "kill postmaster": lambda chaos: chaos.signal_postmaster(signal.SIGKILL),
    "end postgres at once": lambda chaos: chaos.signal_postmaster(signal.SIGQUIT),
    "kill a backend": Chaos.kill_a_backend,
    "kill everything": Chaos.kill_everything,
    "lake away": Chaos.lake_away,
    "exchange: down": Chaos.exchange_down,
    "exchange: clock": Chaos.exchange_clock,
    "a backfill of today": Chaos.backfill,
    **{
        name: lambda chaos, fault=fault: chaos.exchange_fault(fault)  # type: ignore[misc]
        for name, fault in EXCHANGE_FAULTS.items()
    },
}
