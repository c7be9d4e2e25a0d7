"""Rendering, pages and HTTP, where the wire formats do not reach."""

import asyncio
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.simulator import SimulatorConfig, Truth
from crypto_pipeline.simulator.dialects import make_dialect
from crypto_pipeline.simulator.pages import BlockCache, Pager
from crypto_pipeline.simulator.rendering import Number, render_rows
from crypto_pipeline.simulator.wire import Answer, HttpRequest, Listener

START = 19_700 * DAY_MS


def render(number: Number) -> list[str]:
    text, starts = render_rows([b"[", number, b"],"], len(number.values))
    assert starts[-1] == len(text)
    return [text[a:b].decode()[1:-2] for a, b in itertools.pairwise(starts)]


def test_decimals_are_padded_or_trimmed() -> None:
    values = np.array([0.0, 1.0, 100.5, 73_400.0, 0.00012])
    assert render(Number(values, 8, 5)) == [
        "0.00000000",
        "1.00000000",
        "100.50000000",
        "73400.00000000",
        "0.00012000",
    ]
    assert render(Number(values, 8, 5, trim=True)) == ["0", "1", "100.5", "73400", "0.00012"]
    assert render(Number(np.array([0, 7, 123_456_789_012]))) == ["0", "7", "123456789012"]


@given(
    st.lists(st.floats(min_value=0, max_value=1e15, allow_subnormal=False), min_size=1),
    st.integers(0, 10),
)
def test_any_value_parses_back_to_itself(values: list[float], exact: int) -> None:
    column = np.array(values)
    assert [float(text) for text in render(Number(column, 8, exact))] == values
    assert [float(text) for text in render(Number(column, 8, exact, trim=True))] == values


def pager(limit_bytes: int, *, newest_first: bool = False) -> Pager:
    config = SimulatorConfig.for_pipeline({"binance": ("binance", ["BTC/USDT"])})
    series = Truth(config).series("binance", "BTC/USDT")
    dialect = make_dialect("binance", ["BTC/USDT"])
    cache = BlockCache(limit_bytes)
    return Pager(cache, series, MINUTE_MS, dialect.render, newest_first=newest_first)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("method", ["oldest", "newest"])
def test_pages_are_cut_across_blocks(method: str, *, newest_first: bool) -> None:
    pages = pager(10_000_000, newest_first=newest_first)
    page = getattr(pages, method)(START + 60_000, START + 3 * DAY_MS, 3_000)
    times = [row[0] for row in json.loads(b"[" + b",".join(page.runs) + b"]")]
    first = START + 60_000 if method == "oldest" else START + 3 * DAY_MS - 3_000 * MINUTE_MS
    expected = [first + n * MINUTE_MS for n in range(3_000)]
    assert times == (expected[::-1] if newest_first else expected)
    assert (page.count, page.first, page.last) == (3_000, expected[0], expected[-1])


def test_memory_is_bounded() -> None:
    pages = pager(1_000_000)
    for day in range(20):
        pages.oldest(START + day * DAY_MS, START + (day + 1) * DAY_MS, 10)
        assert pages.cache.used_bytes <= 1_000_000
    assert pages.cache.used_bytes == sum(block.size for block in pages.cache._blocks.values())
    assert 2 <= len(pages.cache._blocks) < 10


async def talk(*chunks: bytes) -> bytes:
    """What the server says to raw bytes, until it closes or has said all."""

    async def slow() -> Answer:
        await asyncio.sleep(0.01)
        return Answer.json("slow")

    def handle(request: HttpRequest):
        if request.path == "bug":
            raise RuntimeError("a bug")
        return slow() if request.path == "slow" else Answer.json([request.path, request.query])

    listener = Listener(handle)
    port = await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in chunks:
        writer.write(chunk)
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)
    await listener.stop()
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


def test_requests_are_answered_in_order_however_they_arrive() -> None:
    said = asyncio.run(
        talk(
            b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET /a?b=1%2C2&c=x+y&d= HTT",
            b"P/1.1\r\n\r",
            b"\nPOST /p HTTP/1.1\r\nContent-Length: 4\r\n\r\nab",
            b"cd",
        )
    )
    bodies = [part.partition(b"\r\n\r\n")[2] for part in said.split(b"HTTP/1.1 200 OK")[1:]]
    assert [json.loads(body) for body in bodies] == [
        "slow",
        ["a", {"b": "1,2", "c": "x y", "d": ""}],
        ["p", {}],
    ]


def test_what_is_not_http_is_told_so() -> None:
    assert asyncio.run(talk(b"hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


def test_a_bug_answers_500_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(talk(b"GET /bug HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
    assert "RuntimeError: a bug" in caplog.text
