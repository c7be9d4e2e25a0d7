"""Answers meant to take the process: a typed error in time, and next to no memory.

Over real sockets, by genuine ccxt, in a process of its own whose peak memory is read from the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crypto_pipeline_tests.exchanges.conftest import KEYS, NOW, Asker
from crypto_pipeline_tests.exchanges.hungry import Hungry, hungry_process

ALLOWED = {"binance": "2,000,000", "kraken": "1,720,000", "coinbaseexchange": "1,300,000"}
#: The body, its text and what JSON makes of it, for the largest page; a bomb of 200 MB shows.
PAGE_MB = 25
MARKETS_MB = 150

TOO_LARGE: dict[str, dict[str, Any]] = {
    "100 MB": {"act": "large", "megabytes": 100},
    "10 million rows": {"act": "large", "megabytes": 140, "encoding": "chunked"},
    "50 MB of lists": {"act": "many_values", "megabytes": 50},
    "deep nesting, 100 MB": {"act": "deep", "megabytes": 100},
    "a bomb of gzip": {"act": "bomb", "encoding": "gzip", "megabytes": 200},
    "a bomb of deflate": {"act": "bomb", "encoding": "deflate", "megabytes": 200},
    "a bomb of raw deflate": {"act": "bomb", "encoding": "raw deflate", "megabytes": 200},
    "no end": {"act": "endless"},
}


@pytest.fixture(scope="module")
def hungry() -> Iterator[Hungry]:
    with hungry_process() as process:
        yield process


def told(
    asker: Asker, hungry: Hungry, fault: dict[str, Any], *, endpoint: str, **fields: Any
) -> dict[str, Any]:
    """What came of asking binance once, or the key named in ``fields``."""
    key = fields.pop("key", "binance")
    asker.simulator.control.add_fault(exchange=key, endpoint=endpoint, **fault)
    config = asker.config(key, **{"retry": {"attempts": 1}, "timeout_seconds": 10, **fields})
    return hungry.ask(config, markets=endpoint == "markets", at=NOW)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_answer_that_is_too_large_is_refused_before_it_takes_memory(
    asker: Asker, hungry: Hungry, key: str, name: str
) -> None:
    """aiohttp reads any body whole and unpacks without a bound: 200 KB came to 200 MB and more."""
    result = told(asker, hungry, TOO_LARGE[name], endpoint="candles", key=key)
    assert (result["error"], result["status"]) == ("BadAnswer", 200)
    assert result["rerun_helps"]
    assert result["grown_mb"] < PAGE_MB
    for part in (key, "2024-03-15T12:04:56", ALLOWED[key], "allowed", "set answer_megabytes"):
        assert part in result["text"]


@pytest.mark.parametrize("name", TOO_LARGE)
def test_so_is_a_list_of_markets(asker: Asker, hungry: Hungry, name: str) -> None:
    """Real lists have 20 MB: they get the larger bound, which is in ``pipeline.yaml``."""
    result = told(asker, hungry, TOO_LARGE[name], endpoint="markets")
    assert result["error"] == "BadAnswer"
    assert result["grown_mb"] < MARKETS_MB
    for part in ("loading its markets", "32,000,000", "set answer_megabytes"):
        assert part in result["text"]


def test_without_the_bound_this_would_show(asker: Asker, hungry: Hungry) -> None:
    """The measure of memory sees what it is there to see."""
    fault = {"act": "bomb", "encoding": "gzip", "megabytes": 200}
    result = told(asker, hungry, fault, endpoint="markets", answer_megabytes=250)
    assert result["error"] == "BadAnswer"
    assert result["grown_mb"] > MARKETS_MB


def test_the_bound_is_in_the_file(asker: Asker, hungry: Hungry) -> None:
    """For whatever is asked, also below what a page would be allowed."""
    fault = {"act": "large", "megabytes": 30}
    result = told(asker, hungry, fault, endpoint="candles", answer_megabytes=1)
    assert "1,000,000 are allowed" in result["text"]


@pytest.mark.parametrize("endpoint", ["candles", "markets"])
def test_small_bodies_that_grow_when_decoded_are_not_decoded(
    asker: Asker, hungry: Hungry, endpoint: str
) -> None:
    """``[[],[],…`` takes 24 times its size: by size alone 30 MB of it would be 700."""
    megabytes = 1 if endpoint == "candles" else 30
    fault = {"act": "many_values", "megabytes": megabytes}
    result = told(asker, hungry, fault, endpoint=endpoint)
    assert result["error"] == "BadAnswer"
    assert "JSON values, where " in result["text"]
    assert result["grown_mb"] < (PAGE_MB if endpoint == "candles" else MARKETS_MB)


def test_json_that_is_nested_without_end_is_told_as_such(asker: Asker, hungry: Hungry) -> None:
    """1 MB of brackets; it must neither crash the decoder nor count as "no candles"."""
    for endpoint in ("candles", "markets"):
        result = told(asker, hungry, {"act": "deep", "megabytes": 1}, endpoint=endpoint)
        assert result["error"] == "BadAnswer"
        assert "nested too deeply" in result["text"] or "500,000 JSON values" in result["text"]


def test_nesting_with_a_nan_in_it_is_told_as_such(asker: Asker, hungry: Hungry) -> None:
    """NaN sends a body to the other decoder, whose RecursionError is no ValueError."""
    fault = {"act": "body", "body": "[NaN," + "[" * 3_000 + "]" * 3_000 + "]"}
    result = told(asker, hungry, fault, endpoint="candles")
    assert result["error"] == "BadAnswer"
    assert "nested too deeply" in result["text"]


@pytest.mark.parametrize("rows", [17_200, 17_201])
def test_rows_beyond_a_page_are_taken_up_to_a_number(
    asker: Asker, hungry: Hungry, rows: int
) -> None:
    """Some exchanges do not keep to a limit; none sends ten thousand rows beyond its page."""
    fault = {"act": "many_rows", "rows": rows}
    result = told(asker, hungry, fault, endpoint="candles", key="kraken")
    if rows == 17_200:
        assert result["rows"] == rows
    else:
        assert result["error"] == "BadAnswer"
        assert "17,201 candles, where 17,200 are allowed and a page is 720" in result["text"]


@pytest.mark.parametrize("endpoint", ["candles", "markets"])
def test_an_answer_that_trickles_ends_with_the_timeout(
    asker: Asker, hungry: Hungry, endpoint: str
) -> None:
    """Bytes that keep coming do not prolong a request: the timeout is for all of it."""
    result = told(asker, hungry, {"act": "trickle"}, endpoint=endpoint, timeout_seconds=0.4)
    assert result["error"] == "ExchangeUnavailable"
    assert "Timeout" in result["text"]
    assert 0.4 <= result["seconds"] < 3
    assert result["grown_mb"] < PAGE_MB


def test_a_flood_of_headers_is_refused(asker: Asker, hungry: Hungry) -> None:
    """aiohttp takes 128 fields; we only tell it for what it is."""
    fault = {"act": "many_headers", "rows": 50_000}
    result = told(asker, hungry, fault, endpoint="candles")
    assert result["error"] == "BadAnswer"
    assert "Too many headers" in result["text"]
    assert result["grown_mb"] < PAGE_MB


def test_a_flood_of_interim_answers_ends_with_the_timeout(asker: Asker, hungry: Hungry) -> None:
    """A server may say "100 Continue" as often as it likes."""
    fault = {"act": "many_interims", "rows": 1_000_000}
    result = told(asker, hungry, fault, endpoint="candles", timeout_seconds=0.4)
    assert result["error"] == "ExchangeUnavailable"
    assert result["grown_mb"] < PAGE_MB


@pytest.mark.parametrize("name", ["100 MB", "a bomb of gzip", "no end"])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "RateLimited"), (451, "ExchangeBlocked"), (503, "ExchangeUnavailable")],
)
def test_a_status_counts_whatever_comes_after_it(
    asker: Asker, hungry: Hungry, name: str, status: int, kind: str
) -> None:
    """A 429 with a huge body must still stop all runs: its body is cut, not refused."""
    asker.simulator.control.add_fault(
        act="status", status=status, headers={"Retry-After": "7"}, exchange="binance",
        endpoint="candles",
    )  # fmt: skip
    result = told(asker, hungry, TOO_LARGE[name], endpoint="candles")
    assert (result["error"], result["status"]) == (kind, status)
    assert result["grown_mb"] < PAGE_MB
    assert len(result["text"]) < 1_500


def test_an_exchange_is_asked_again_on_a_new_connection(asker: Asker) -> None:
    """What is left of an endless answer must not be read as the beginning of the next one."""
    asker.simulator.control.add_fault(
        act="endless", exchange="binance", endpoint="candles", count=1
    )
    assert len(asker.fetch("binance").rows) == 20
    assert len(asker.asked("binance")) == 2
