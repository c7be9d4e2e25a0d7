"""Clock, log and settings, from another process."""

import socket
import time
from urllib.parse import urlsplit

import pytest

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.simulator import SimulatorControl
from crypto_pipeline_tests.simulator.conftest import NOW_MS
from crypto_pipeline_tests.simulator.http_calls import get, get_json


def kraken_time(simulator) -> int:
    return get_json(f"{simulator.urls['kraken']}/0/public/Time")["result"]["unixtime"]


def test_every_request_is_logged(simulator) -> None:
    began = time.time_ns()
    get(f"{simulator.urls['kraken']}/0/public/OHLC?pair=XBTUSD&interval=5")
    fault = simulator.control.add_fault(act="drop", endpoint="time")
    with pytest.raises(ConnectionError):
        get(f"{simulator.urls['coinbaseexchange']}/time")
    first, second = simulator.control.arrivals()
    assert began < first.pop("time_ns") < second.pop("time_ns") < time.time_ns()
    assert first == {
        "exchange": "kraken",
        "endpoint": "candles",
        "symbol": "BTC/USD",
        "params": {"pair": "XBTUSD", "interval": "5"},
        "status": 200,
        "faults": [],
    }
    assert (second["status"], second["faults"]) == (0, [fault])
    assert len(simulator.control.arrivals(exchange="kraken", endpoint="candles")) == 1
    assert simulator.control.arrivals(since_ns=time.time_ns()) == []
    assert simulator.control.counters() == {
        "kraken": {"endpoints": {"candles": 1}, "statuses": {"200": 1}},
        "coinbaseexchange": {"endpoints": {"time": 1}, "statuses": {"0": 1}},
    }


def test_the_clock_freezes_runs_and_races(simulator) -> None:
    control = simulator.control
    assert kraken_time(simulator) == NOW_MS // 1_000
    control.set_clock()
    assert abs(kraken_time(simulator) - time.time()) < 2
    control.set_clock(starts_at=1_600_000_000_000, speed=1_000)
    time.sleep(0.05)
    assert 1_600_000_040 < kraken_time(simulator) < 1_600_030_000
    control.set_clock(frozen_at=NOW_MS)
    control.set_clock_offset("kraken", -10)
    assert kraken_time(simulator) == NOW_MS // 1_000 - 10
    control.reset()
    assert kraken_time(simulator) == NOW_MS // 1_000


def test_latency_is_set_for_one_exchange(simulator) -> None:
    simulator.control.set_latency("kraken", 0.2)
    began = time.monotonic()
    kraken_time(simulator)
    assert time.monotonic() - began >= 0.2
    overview = simulator.control.overview()["exchanges"]
    assert overview["kraken"]["latency"] == 0.2
    assert overview["binance"]["latency"] == 0


def test_an_exchange_with_its_own_port_can_refuse_connections(simulator) -> None:
    url = f"{simulator.urls['binance']}/api/v3/ping"
    assert not url.startswith(simulator.base_url)
    assert get(url)[0] == 200
    simulator.control.stop_listening("binance")
    with pytest.raises(ConnectionRefusedError):
        get(url)
    with socket.socket() as another, pytest.raises(OSError, match="in use"):
        another.bind(("127.0.0.1", urlsplit(url).port))  # or it could not be had back
    assert kraken_time(simulator)
    simulator.control.start_listening("binance")
    assert get(url)[0] == 200
    assert get(f"{simulator.base_url}/binance/api/v3/ping")[0] == 404
    assert get(url.replace("/binance/", "/kraken/"))[0] == 404


def test_mistakes_are_explained(simulator) -> None:
    control = simulator.control
    with pytest.raises(LocalServiceError, match="no port of its own"):
        control.stop_listening("kraken")
    with pytest.raises(LocalServiceError, match="KeyError: 'nope'"):
        control.set_latency("nope", 1)
    with pytest.raises(LocalServiceError, match=r"there is no GET /_control/nope"):
        control._call("GET", "nope")
    with pytest.raises(LocalServiceError, match="Extra inputs"):
        control._call("POST", "clock", {"frozen": 1})


def test_a_simulator_that_is_away_is_named() -> None:
    with pytest.raises(LocalServiceError, match=r"127\.0\.0\.1:9 does not answer GET"):
        SimulatorControl("http://127.0.0.1:9").overview()
