"""Hostile answers, as they are on the wire."""

import gzip
import socket
import zlib
from urllib.parse import urlsplit

import orjson
import pytest

from crypto_pipeline_tests.simulator.http_calls import get


def asked(simulator, **fault) -> tuple[int, dict[str, str], bytes]:
    simulator.control.add_fault(**fault)
    return get(f"{url(simulator)}?symbol=BTCUSDT&interval=1m&limit=3")


def url(simulator) -> str:
    return f"{simulator.urls['binance']}/api/v3/klines"


@pytest.mark.parametrize("encoding", ["", "chunked"])
def test_large_ones_are_whole_json(simulator, encoding) -> None:
    """Chunked ones do not say how large they are."""
    status, headers, body = asked(simulator, act="large", megabytes=2, encoding=encoding)
    assert status == 200
    assert ("content-length" in headers) != bool(encoding)
    assert len(body) > 1_900_000
    assert orjson.loads(body)[0] == [0] * 6


def test_rows_are_the_true_ones_again(simulator) -> None:
    rows = orjson.loads(asked(simulator, act="many_rows", rows=7)[2])
    assert rows[:3] == rows[3:6]
    assert len(rows) == 7


def test_values_and_depth(simulator) -> None:
    """Both are JSON, though no decoder should take the second."""
    assert orjson.loads(asked(simulator, act="many_values", megabytes=1)[2])[:2] == [[], []]
    assert asked(simulator, act="deep", megabytes=1)[2] == b"[" * 500_000 + b"]" * 500_000


@pytest.mark.parametrize(
    ("encoding", "unpack"),
    [
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
        ("raw deflate", lambda body: zlib.decompress(body, -15)),
    ],
)
def test_bombs_are_small_until_unpacked(simulator, encoding, unpack) -> None:
    _, headers, body = asked(simulator, act="bomb", encoding=encoding, megabytes=3)
    assert headers["content-encoding"] == encoding.removeprefix("raw ")
    assert len(body) < 20_000
    assert len(orjson.loads(unpack(body))) == 1_500_001


@pytest.mark.parametrize("act", ["endless", "trickle"])
def test_some_never_end(simulator, act) -> None:
    """And the simulator goes on for others, and stops when the client has gone."""
    simulator.control.add_fault(act=act, count=1)
    parts = urlsplit(url(simulator))
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"GET {parts.path}?symbol=BTCUSDT HTTP/1.1\r\n\r\n".encode())
        received = b""
        while received.count(b"\r\n[") < 3:
            received += connection.recv(65_536)
        assert get(f"{url(simulator)}?symbol=BTCUSDT&interval=1m&limit=3")[0] == 200
    assert b"Transfer-Encoding: chunked" in received


def test_heads_can_be_large(simulator) -> None:
    _, headers, body = asked(simulator, act="many_headers", rows=50)
    assert len(headers["x-flood-49"]) == 1_000
    assert len(orjson.loads(body)) == 3
    simulator.control.reset()
    assert len(orjson.loads(asked(simulator, act="many_interims", rows=50)[2])) == 3
