"""Starting, stopping, and being found."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import ccxt.async_support as ccxt
import psutil
import pytest

from crypto_pipeline.errors import ConfigError, LocalServiceError
from crypto_pipeline.simulator import Simulator, SimulatorConfig, ccxt_urls, running_simulator
from crypto_pipeline.simulator.__main__ import main
from crypto_pipeline.simulator.config import DIALECT_OF_CCXT_ID
from crypto_pipeline_tests.simulator.http_calls import get

CONFIG = SimulatorConfig.for_pipeline({"kraken": ("kraken", ["BTC/USD"])})
PARENT = """
import sys, time
from crypto_pipeline.simulator import SimulatorConfig, running_simulator
config = SimulatorConfig.for_pipeline({"kraken": ("kraken", ["BTC/USD"])})
with running_simulator(config) as simulator:
    print(simulator.pid, flush=True)
    time.sleep(60)
"""


def test_it_listens_on_this_machine_only_and_stops_with_its_context() -> None:
    with running_simulator(CONFIG) as simulator:
        assert get(f"{simulator.urls['kraken']}/0/public/Time")[0] == 200
        pid = simulator.pid
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening == ["127.0.0.1"]
    assert not psutil.pid_exists(pid)
    with pytest.raises(ConnectionRefusedError):
        get(simulator.base_url)


def test_it_dies_with_its_parent() -> None:
    """A test run that is killed must not leave servers behind."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=10)


def test_a_port_in_use_is_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(LocalServiceError, match=f"cannot listen on 127.0.0.1:{port}"),
            running_simulator(CONFIG, port=port),
        ):
            pass


def test_it_runs_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "simulator.yaml"
    path.write_text("exchanges:\n  kraken:\n    symbols: [BTC/USD]\n")
    command = [sys.executable, "-m", "crypto_pipeline.simulator", "--port", "0", "--config"]
    with subprocess.Popen([*command, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        place = json.loads(process.stdout.readline())
        assert get(f"{place['urls']['kraken']}/0/public/Time")[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_a_mistake_on_the_command_line_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "simulator.yaml"
    path.write_text("exchanges:\n  kraken:\n    symbol: [BTC/USD]\n")
    assert main(["--config", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path} is not a simulator configuration" in said
    assert "exchanges.kraken.symbol: Extra inputs" in said


def test_it_runs_inside_this_process() -> None:
    async def check() -> None:
        async with Simulator(CONFIG) as simulator:
            loop = asyncio.get_running_loop()
            url = f"{simulator.base_url('kraken')}/0/public/Time"
            assert (await loop.run_in_executor(None, get, url))[0] == 200
            assert simulator.arrivals.counters()["kraken"]["endpoints"] == {"time": 1}

    asyncio.run(check())


@pytest.mark.parametrize("ccxt_id", DIALECT_OF_CCXT_ID)
def test_no_url_of_ccxt_is_left_on_the_internet(ccxt_id: str) -> None:
    """A URL that is not overridden would send a test's request to the real exchange."""
    urls = ccxt_urls(ccxt_id, "http://127.0.0.1:1/x/")
    assert set(urls["api"]) >= set(getattr(ccxt, ccxt_id)().urls["api"])
    assert all(url.startswith("http://127.0.0.1:1/x") for url in urls["api"].values())


def test_an_exchange_it_does_not_speak_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not speak 'okx'"):
        ccxt_urls("okx", "http://127.0.0.1:1")
