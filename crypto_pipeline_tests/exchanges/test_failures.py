"""What goes wrong on the wire, against genuine ccxt: a typed error, never an empty answer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.errors import (
    BadAnswer,
    ExchangeBlocked,
    ExchangeError,
    ExchangeUnavailable,
    RateLimited,
    RequestRefused,
)
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.canned import as_sent
from crypto_pipeline_tests.exchanges.conftest import (
    ATTEMPTS,
    FORMING,
    KEYS,
    NOW,
    SYMBOLS,
    WINDOW,
    Asker,
)

SOFT: dict[str, tuple[dict[str, Any], type[ExchangeError]]] = {
    "html": ({"act": "body", "body": "html"}, BadAnswer),
    "html as json": (
        {"act": "body", "body": "html", "content_type": "application/json"},
        BadAnswer,
    ),
    "null": ({"act": "body", "body": "null", "content_type": "application/json"}, BadAnswer),
    "empty": ({"act": "body", "body": "empty"}, BadAnswer),
    "object": ({"act": "body", "body": "object"}, BadAnswer),
    "a number": ({"act": "body", "body": "17"}, BadAnswer),
    "a text": ({"act": "body", "body": '"maintenance"'}, BadAnswer),
    "unknown object": ({"act": "body", "body": '{"status": "ok", "data": []}'}, BadAnswer),
    "204": ({"act": "no_content"}, BadAnswer),
    "cut json": ({"act": "cut_json"}, BadAnswer),
    "cut gzip": ({"act": "cut_gzip"}, BadAnswer),
    "drop": ({"act": "drop"}, ExchangeUnavailable),
    "drop in mid body": ({"act": "drop_mid_body"}, ExchangeUnavailable),
    **{
        str(status): ({"act": "status", "status": status, "body": "html"}, ExchangeUnavailable)
        for status in (500, 502, 503, 504, 520, 521, 523, 524, 525, 527, 529, 530)
    },
    "523 with a page of candles": (
        {"act": "status", "status": 523, "body": "list"},
        ExchangeUnavailable,
    ),
}
OF_KRAKEN: dict[str, tuple[dict[str, Any], type[ExchangeError]]] = {
    "wrong pair": ({"act": "wrong_pair"}, BadAnswer),
    "list": ({"act": "body", "body": "list"}, BadAnswer),
    "no result": ({"act": "body", "body": '{"error": []}'}, BadAnswer),
    "empty result": ({"act": "body", "body": '{"error": [], "result": {}}'}, BadAnswer),
    "rows are no list": (
        {"act": "body", "body": '{"error": [], "result": {"XXBTZUSD": {"0": [1]}}}'},
        BadAnswer,
    ),
    "EService": (
        {"act": "body", "body": '{"error": ["EService:Timeout"]}'},
        ExchangeUnavailable,
    ),
}
CASES = [
    *((key, name) for key in KEYS for name in SOFT),
    *(("kraken", name) for name in OF_KRAKEN),
]


@pytest.mark.parametrize(("key", "name"), CASES)
def test_a_soft_failure_is_a_typed_error_and_never_an_empty_answer(
    asker: Asker, key: str, name: str
) -> None:
    """Plain ccxt answers every one of these with "no candles", and a gap was silently settled."""
    fault, kind = {**SOFT, **OF_KRAKEN}[name]
    asker.simulator.control.add_fault(exchange=key, endpoint="candles", **fault)
    with pytest.raises(ExchangeError) as caught:
        asker.fetch(key)
    error = caught.value
    assert type(error) is kind
    assert error.rerun_helps
    # aiohttp sends a GET again by itself where the connection breaks before an answer
    assert len(asker.asked(key)) == ATTEMPTS * (2 if name == "drop" else 1)
    text = str(error)
    for part in (key, SYMBOLS[key], "1m", "2024-03-15T12:04:00", "2024-03-15T12:24:00"):
        assert part in text
    assert "What to do: " in text
    assert len(text) < 1_500
    assert "\n" not in text


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", ["html", "cut gzip", "drop", "drop in mid body", "529", "204"])
def test_a_passing_fault_costs_attempts_and_no_candle(asker: Asker, key: str, name: str) -> None:
    """A fault that ends before the attempts do leaves the whole page behind it."""
    fault, _ = SOFT[name]
    asker.simulator.control.add_fault(exchange=key, endpoint="candles", count=ATTEMPTS - 1, **fault)
    answer = asker.fetch(key)
    assert len(asker.asked(key)) == ATTEMPTS
    assert answer.fetched_at == NOW
    assert times_in_window(answer) == list(range(*WINDOW, MINUTE_MS))


def times_in_window(answer: Any, window: Interval = WINDOW) -> list[int]:
    layout = answer.layout
    times = sorted(
        int(row[layout.positions[0]]) * layout.time_unit_ms for row in as_sent(answer.rows)
    )
    return [time for time in times if time in window]


@pytest.mark.parametrize("key", KEYS)
def test_a_refused_connection_says_so(asker: Asker, key: str) -> None:
    """An exchange whose port is closed: no status, a rerun helps, the cause is in the text."""
    control = asker.simulator.control

    async def call(wrapper: ExchangeWrapper) -> None:
        await wrapper.load_markets()
        control.stop_listening(key)
        try:
            await wrapper.fetch(Series(SYMBOLS[key], "1m"), WINDOW)
        finally:
            control.start_listening(key)

    with pytest.raises(ExchangeUnavailable, match=r"[Cc]onnect") as caught:
        asker.run(key, call)
    assert caught.value.http_status is None
    assert caught.value.rerun_helps


@pytest.mark.parametrize("key", KEYS)
def test_a_timeout_ends_a_request_that_hangs(asker: Asker, key: str) -> None:
    """``timeout_seconds`` is the patience for one attempt, and the error tells a timeout apart."""
    asker.simulator.control.add_fault(act="delay", latency=5, exchange=key, endpoint="candles")
    began = time.monotonic()
    with pytest.raises(ExchangeUnavailable, match="Timeout") as caught:
        asker.fetch(key, timeout_seconds=0.15, retry={"attempts": 2, "first_wait_seconds": 0})
    assert 0.3 <= time.monotonic() - began < 3
    assert caught.value.rerun_helps


@pytest.mark.parametrize("key", KEYS)
def test_a_status_seen_before_the_connection_broke_is_not_the_failures(
    asker: Asker, key: str
) -> None:
    """Markets came with 200; the candles' connection then broke: 200 is not what happened."""
    asker.simulator.control.add_fault(act="drop", exchange=key, endpoint="candles")

    async def call(wrapper: ExchangeWrapper) -> None:
        await wrapper.fetch(Series(SYMBOLS[key], "1m"), WINDOW)

    with pytest.raises(ExchangeUnavailable) as caught:
        asker.run(key, call, retry={"attempts": 1})
    assert caught.value.http_status is None


@pytest.mark.parametrize("key", KEYS)
def test_too_many_requests_waits_as_long_as_the_exchange_asks(asker: Asker, key: str) -> None:
    """429 with Retry-After: the next attempt comes no sooner, and brings the page."""
    asker.simulator.control.add_fault(
        act="status", status=429, headers={"Retry-After": "1"}, count=1, exchange=key,
        endpoint="candles",
    )  # fmt: skip
    answer = asker.fetch(key)
    first, second = (arrival["time_ns"] for arrival in asker.asked(key))
    assert 1.0 <= (second - first) / 1e9 < 2.5
    assert times_in_window(answer) == list(range(*WINDOW, MINUTE_MS))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("status", [418, 429])
def test_rate_limits_are_told_with_their_wait(asker: Asker, key: str, status: int) -> None:
    """A ban longer than a run may wait ends the request at once, and carries the wait on."""
    asker.simulator.control.add_fault(
        act="status", status=status, headers={"retry-after": "300"}, exchange=key,
        endpoint="candles",
    )  # fmt: skip
    with pytest.raises(RateLimited) as caught:
        asker.fetch(key)
    assert caught.value.retry_after == 300
    assert caught.value.http_status == status
    assert caught.value.rerun_helps
    assert len(asker.asked(key)) == 1


@pytest.mark.parametrize(
    "body",
    ['{"error": ["EGeneral:Too many requests"]}', '{"error": ["EAPI:Rate limit exceeded"]}'],
)
def test_kraken_says_too_often_with_status_200(asker: Asker, body: str) -> None:
    """Kraken's rate limit has no status of its own: its words count."""
    asker.simulator.control.add_fault(act="body", body=body, exchange="kraken", endpoint="candles")
    with pytest.raises(RateLimited):
        asker.fetch("kraken")
    assert len(asker.asked("kraken")) == ATTEMPTS


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("status", [403, 451])
def test_a_block_is_not_asked_again(asker: Asker, key: str, status: int) -> None:
    """ccxt calls a geo-block a NetworkError; retrying it would only lengthen the block."""
    asker.simulator.control.add_fault(
        act="status", status=status, body="html", exchange=key, endpoint="candles"
    )
    with pytest.raises(ExchangeBlocked, match="address the exchange serves") as caught:
        asker.fetch(key)
    assert caught.value.http_status == status
    assert not caught.value.rerun_helps
    assert len(asker.asked(key)) == 1


@pytest.mark.parametrize("key", KEYS)
def test_a_blocked_market_list_is_a_block_too(asker: Asker, key: str) -> None:
    """From a blocked address the markets are what is refused first."""
    asker.simulator.control.add_fault(act="status", status=451, exchange=key, endpoint="markets")
    with pytest.raises(ExchangeBlocked, match="loading its markets"):
        asker.fetch(key)
    assert len(asker.simulator.control.arrivals(exchange=key, endpoint="markets")) == 1


@pytest.mark.parametrize("key", KEYS)
def test_an_unknown_symbol_is_refused_without_asking(asker: Asker, key: str) -> None:
    """The market list answers it, whether it was loaded before or comes with the request."""
    with pytest.raises(RequestRefused, match=rf"exchanges\.{key}\.symbols"):
        asker.fetch(key, symbol="NO/SUCH")

    async def unloaded(wrapper: ExchangeWrapper) -> None:
        await wrapper.fetch(Series("NO/SUCH", "1m"), WINDOW)

    with pytest.raises(RequestRefused, match="NO/SUCH") as caught:
        asker.run(key, unloaded)
    assert not caught.value.rerun_helps
    assert asker.asked(key) == []


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("kraken", {"act": "body", "body": '{"error": ["EQuery:Unknown asset pair"]}'}),
        ("kraken", {"act": "body", "body": '{"error": ["EGeneral:Invalid arguments"]}'}),
        (
            "coinbaseexchange",
            {"act": "status", "status": 404, "body": '{"message": "NotFound"}'},
        ),
        (
            "binance",
            {"act": "status", "status": 400, "body": '{"code": -1121, "msg": "Invalid symbol."}'},
        ),
    ],
)
def test_a_symbol_that_is_gone_is_refused_without_retry(
    asker: Asker, key: str, fault: dict[str, Any]
) -> None:
    """Delisted after the markets were loaded. ccxt raises a bare ExchangeError or OrderNotFound."""
    asker.simulator.control.add_fault(exchange=key, endpoint="candles", **fault)
    with pytest.raises(RequestRefused) as caught:
        asker.fetch(key)
    assert not caught.value.rerun_helps
    assert len(asker.asked(key)) == 1


@pytest.mark.parametrize("key", KEYS)
def test_an_unserved_timeframe_is_refused_without_asking(asker: Asker, key: str) -> None:
    """ccxt sends any timeframe: ``7m`` went out and an error page came back."""
    with pytest.raises(RequestRefused, match="has no timeframe 7m"):
        asker.fetch(key, timeframe="7m", window=Interval(FORMING - MINUTE_MS, FORMING))
    assert asker.asked(key) == []


def test_every_attempt_is_counted(asker: Asker) -> None:
    """A run's metadata says how many requests it made, and how many of them were repeated."""
    asker.simulator.control.add_fault(
        act="body", body="html", exchange="binance", endpoint="candles", count=ATTEMPTS - 1
    )

    async def call(wrapper: ExchangeWrapper) -> tuple[int, int]:
        await wrapper.load_markets()
        await wrapper.fetch(Series("BTC/USDT", "1m"), WINDOW)
        return wrapper.counts.requests, wrapper.counts.retried

    requests, retried = asker.run("binance", call)
    assert requests == len(asker.simulator.control.arrivals(exchange="binance")) == 1 + ATTEMPTS
    assert retried == ATTEMPTS - 1
