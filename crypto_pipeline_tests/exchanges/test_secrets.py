"""Credentials never reach a message, whatever an exchange, a proxy or ccxt puts them into."""

from __future__ import annotations

import asyncio
import json
import traceback
from typing import Any, Final
from urllib.parse import quote

import pytest
from aiohttp import web

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.errors import ConfigError, CryptoPipelineError
from crypto_pipeline.redaction import redacted
from crypto_pipeline_tests.exchanges.canned import NOW, always, serving, wrapped

API_KEY: Final = "FAKEKEY0123456789/+=abcdef"
SECRET: Final = "-----BEGIN FAKE KEY-----\nMHcCAQEEIFAKEFAKE\n-----END FAKE KEY-----"
_WINDOW: Final = Interval(
    NOW // MINUTE_MS * MINUTE_MS - 5 * MINUTE_MS, NOW // MINUTE_MS * MINUTE_MS
)
_BODIES: Final = {
    "html": f"<html>{'x' * 95}{API_KEY}</html>",  # the end of what is shown falls into the key
    "json error": json.dumps({"code": -2015, "msg": f"Invalid API-key {API_KEY}, {SECRET}"}),
    "unknown json": json.dumps({"echo": {"headers": {"X-MBX-APIKEY": API_KEY, "s": SECRET}}}),
    "multi-line html": f"<pre>{SECRET}</pre>",
    "url": f"<a href='https://x/?apiKey={quote(API_KEY, safe='')}&s={quote(SECRET)}'>",
}


def _assert_kept(error: BaseException) -> None:
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        shown += repr(link)
        link = link.__cause__ or link.__context__
    for part in (API_KEY[:12], quote(API_KEY, safe=""), "MHcCAQEEIFAKEFAKE"):
        assert part not in shown


def _fails(url: str, **ccxt: Any) -> CryptoPipelineError:
    async def run() -> None:
        async with wrapped(
            "binance", url, secrets=(SECRET, API_KEY), apiKey=API_KEY, secret=SECRET, **ccxt
        ) as wrapper:
            await wrapper.fetch(Series("BTC/USDT", "1m"), _WINDOW)

    with pytest.raises(CryptoPipelineError) as caught:
        asyncio.run(run())
    return caught.value


@pytest.mark.parametrize("status", [200, 400, 429, 451, 500, 523])
@pytest.mark.parametrize("body", _BODIES)
def test_an_answer_that_echoes_credentials_is_redacted(body: str, status: int) -> None:
    """Error pages of gateways show the request's headers; their text went into the run's log."""

    async def run() -> CryptoPipelineError:
        async with serving(lambda request: web.Response(text=_BODIES[body], status=status)) as url:
            return await asyncio.to_thread(_fails, url)

    error = asyncio.run(run())
    _assert_kept(error)
    assert "***" in str(error) or body in ("multi-line html", "url") or status != 200


def test_a_credential_in_the_address_is_redacted() -> None:
    """ccxt's network errors quote the whole URL, query and all."""
    error = _fails(f"http://127.0.0.1:9/{quote(API_KEY, safe='')}/")
    assert "127.0.0.1:9" in str(error)
    _assert_kept(error)


def test_a_proxys_password_is_redacted() -> None:
    """``httpProxy: http://user:password@host`` is a credential, too; see config.load."""

    async def run() -> CryptoPipelineError:
        async with serving(always(b"[]")) as url:
            return await asyncio.to_thread(
                _fails, url, httpProxy=f"http://user:{quote(API_KEY, safe='')}@127.0.0.1:9"
            )

    _assert_kept(asyncio.run(run()))


def test_a_constructor_that_fails_is_a_config_error_without_credentials() -> None:
    """ccxt's constructor checks nothing: a wrong type was a traceback through our start."""

    async def run() -> None:
        async with wrapped("binance", "http://x", secrets=(API_KEY,), rateLimit=API_KEY):
            pass

    with pytest.raises(ConfigError, match=r"exchanges\.binance\.ccxt") as caught:
        asyncio.run(run())
    _assert_kept(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        API_KEY,
        f"before {API_KEY} after",
        quote(API_KEY),
        quote(API_KEY, safe=""),
        json.dumps({"k": API_KEY}),
        json.dumps(SECRET),
        repr(SECRET),
        " ".join(SECRET.split()),
    ],
)
def test_every_form_of_a_secret_is_taken_out(text: str) -> None:
    """Plain, percent-encoded, JSON, Python, on one line."""
    shown = redacted(text, (SECRET, API_KEY))
    assert "***" in shown
    assert "FAKE" not in shown


def test_redaction_without_secrets_changes_nothing() -> None:
    """An empty secret would put *** between any two letters."""
    assert redacted("as it was", ("",)) == "as it was"
    assert redacted("as it was", ()) == "as it was"


def test_short_secrets_are_taken_out_as_words() -> None:
    """``uid: 1`` must not make every number unreadable, nor ``password: x`` every word."""
    assert redacted("exchanges: x, uid=1, 2021-11-11", ("x", "1")) == "exchanges: ***, uid=***, 2021-11-11"  # fmt: skip
    assert redacted("a +49/ b", ("+49/",)) == "a *** b"
