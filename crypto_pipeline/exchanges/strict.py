"""What ccxt lets pass and we do not: a mixin over every genuine ccxt exchange class.

ccxt turns HTML, cut JSON, an empty body and several 5xx answers into "no candles". Its
``handle_errors`` hook sees status, headers and body of exactly one call, so that is where an
answer is held to what the exchange documents; ``parse_ohlcvs`` and ``parse_trades`` are where the
rows are still as they came, so that is where they are taken. What was seen is left for the caller of this very request in
a context variable, which no concurrent request shares.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import ccxt.async_support
import orjson

from crypto_pipeline.core.pacing import Pacer
from crypto_pipeline.core.rows import PlainRows, as_received, plain_rows
from crypto_pipeline.errors import BadAnswer, ConfigError, ExchangeUnavailable
from crypto_pipeline.exchanges.bounded import HINT, Bound, bounded_session
from crypto_pipeline.exchanges.exchanged import CURRENT
from crypto_pipeline.redaction import redacted

_LONGEST_INTEGER: Final = 4_000

#: Exchanges whose answer is the list of candles, and whose ccxt class hands it to ``parse_ohlcvs`` as it
#: is: read in its source, and pinned. They answer nothing else with lists of lists.
LISTING_CANDLES: Final = frozenset(
    {"binance", "binanceus", "binanceusdm", "binancecoinm", "coinbaseexchange"}
)


@lru_cache(maxsize=4)
def authorities(cafile: str) -> ssl.SSLContext:
    """What ccxt makes for each exchange: 25 ms of CPU, and it can be shared."""
    return ssl.create_default_context(cafile=cafile)


class StrictAnswers:
    """Mixed in before a ccxt exchange class; see the module's docstring."""

    secrets: tuple[str, ...] = ()
    clock: Callable[[], int] = staticmethod(lambda: time.time_ns() // 1_000_000)
    on_request: Callable[[], None] = staticmethod(lambda: None)
    pacer: Pacer | None = None
    answer_bytes: int | None = None  # None as fits what is asked
    page: int = 1_000
    lists_candles = False  # whether lists of lists are candles, and ccxt looks into none of them

    #: ccxt sleeps a quarter of a second once all is closed, for an aiohttp that did not wait for TLS.
    timeout_on_exit = 0

    @property
    def bound(self) -> Bound:
        """Of the next answer: until the markets are there, it is a list of markets."""
        if self.answer_bytes is not None:
            return Bound(self.answer_bytes)
        return Bound.of_page(self.page) if self.markets else Bound.of_markets()  # type: ignore[attr-defined]

    def open(self, lazy: bool = False) -> None:  # noqa: FBT001, FBT002 - ccxt's signature
        """Open the session, its answers bounded."""
        before = self.session  # type: ignore[has-type]
        own = self.verify and not self.options.get("include_OS_certificates")  # type: ignore[attr-defined]
        if own and self.ssl_context is None:  # type: ignore[has-type]
            self.ssl_context = authorities(self.cafile)  # type: ignore[attr-defined]
        super().open(lazy)  # type: ignore[misc]
        if self.own_session and self.session is not before:  # type: ignore[attr-defined,has-type]
            self.session = bounded_session(self.session, lambda: self.bound)  # type: ignore[has-type]

    def get_socks_proxy_session(self, proxy: str) -> Any:
        """The session by a proxy, its answers bounded."""
        known = dict(self.socks_proxy_sessions or {})  # type: ignore[attr-defined]
        session = super().get_socks_proxy_session(proxy)  # type: ignore[misc]
        if known.get(proxy) is not session:
            session = bounded_session(session, lambda: self.bound)
            self.socks_proxy_sessions[proxy] = session  # type: ignore[attr-defined]
        return session

    async def throttle(self, cost: float | None = None) -> None:
        """Wait for a place in the budget of all processes; every REST call of ccxt comes by here."""
        if self.pacer is None:
            await super().throttle(cost)  # type: ignore[misc]
            return
        exchanged = CURRENT.get()
        known = None if exchanged is None else exchanged.cost_ms
        by_ccxt = self.rateLimit * (1 if cost is None else cost)  # type: ignore[attr-defined]
        await self.pacer.acquire(by_ccxt if known is None else known)

    async def fetch(
        self, url: str, method: str = "GET", headers: Any = None, body: Any = None
    ) -> Any:
        """Send one request; note when."""
        self.on_request()
        exchanged = CURRENT.get()
        if exchanged is not None:
            exchanged.restart(self.clock())
        return await super().fetch(url, method, headers, body)  # type: ignore[misc]

    def on_json_response(self, body: str) -> Any:
        """Decode a body. One cell that no JSON should hold must not cost the whole page.

        Raises:
            ValueError: no JSON, or such that its decoding would take the memory: ccxt goes on with
                None, so that the status of the answer still counts.
        """
        wrong = self.bound.broken_by(body)
        try:
            if wrong is None:
                rows = self._plain_rows(body) if self.lists_candles else None
                return _decoded(body) if rows is None else rows
        except RecursionError:
            wrong = f"JSON nested too deeply to be an answer ({self._shown(body)})"
        exchanged = CURRENT.get()
        if exchanged is not None:
            exchanged.not_decoded = wrong
        raise ValueError(wrong)

    def _plain_rows(self, body: str) -> PlainRows | None:
        return plain_rows(body, lambda: _decoded(body)) if body.startswith("[[") else None

    def handle_errors(
        self,
        code: int,
        reason: str,
        url: str,
        method: str,
        headers: dict[str, str],
        body: str,
        response: Any,
        request_headers: Any,
        request_body: Any,
    ) -> Any:
        """Apply ccxt's own mapping, then refuse whatever is not a 2xx with a JSON document."""
        exchanged = CURRENT.get()
        if exchanged is not None:
            exchanged.received_at = self.clock()
            exchanged.status = code
            exchanged.headers = headers
            exchanged.body = response
        handled = super().handle_errors(  # type: ignore[misc]
            code, reason, url, method, headers, body, response, request_headers, request_body
        )
        if not 200 <= code < 300:
            self.handle_http_status_code(code, reason, url, method, body)  # type: ignore[attr-defined]
            raise ExchangeUnavailable(f"HTTP {code} {reason}", http_status=code)
        if exchanged is not None and exchanged.not_decoded is not None:
            raise BadAnswer(
                f"HTTP {code} with {exchanged.not_decoded}",
                hint=HINT,
                http_status=code,
            )
        if response is None or isinstance(response, str):
            raise BadAnswer(
                f"HTTP {code} with {self._shown(body)} instead of JSON", http_status=code
            )
        return handled

    def parse_ohlcvs(
        self,
        ohlcvs: list[Any] | None,
        market: Any = None,
        timeframe: str = "1m",
        since: int | None = None,
        limit: int | None = None,
        tail: bool = False,  # noqa: FBT001, FBT002 - ccxt's signature
    ) -> list[Any]:
        """The rows as the exchange sent them: unparsed, unsorted, unfiltered.

        Raises:
            BadAnswer: the rows are ccxt's own empty default, because the answer holds no list where
                this exchange puts its candles (another pair's name, ``{}``, an error object).
        """
        del market, timeframe, since, limit, tail
        return self._taken(ohlcvs, "candles")

    def parse_trades(
        self,
        trades: list[Any] | None,
        market: Any = None,
        since: int | None = None,
        limit: int | None = None,
        params: Any = None,
    ) -> list[Any]:
        """The trades as the exchange sent them: ccxt's own parsing is far too slow for millions.

        Raises:
            BadAnswer: as for :meth:`parse_ohlcvs`.
        """
        del market, since, limit, params
        return self._taken(trades, "trades")

    def _taken(self, rows: list[Any] | None, what: str) -> list[Any]:
        """Leave the rows for the caller of this request, if they are of its answer."""
        exchanged = CURRENT.get()
        if exchanged is None:
            return rows or []
        if not isinstance(rows, list) or not _holds(exchanged.body, rows):
            raise BadAnswer(
                f"HTTP {exchanged.status} with JSON that holds no list of {what} where this"
                f" exchange puts them: {self._shown(as_received(exchanged.body))}",
                http_status=exchanged.status,
            )
        if len(rows) > self.bound.rows:
            raise BadAnswer(
                f"HTTP {exchanged.status} with {len(rows):,} {what}, where {self.bound.rows:,} are"
                f" allowed and a page is {self.page:,}",
                hint=HINT,
                http_status=exchanged.status,
            )
        exchanged.rows = rows
        return rows

    def _shown(self, body: str | None) -> str:
        """The start of a body, on one line. Cut after redaction: half a secret is no secret kept."""
        text = " ".join(redacted(body or "", self.secrets).split())
        if not text:
            return "an empty body"
        return repr(text[:120] + "…" if len(text) > 120 else text)


def strict_exchange(ccxt_id: str, options: dict[str, Any]) -> Any:
    """An instance of ccxt's own async class for an exchange, held to strict answers.

    Raises:
        ConfigError: ccxt has no such exchange.
    """
    genuine = getattr(ccxt.async_support, ccxt_id, None)
    if ccxt_id not in ccxt.async_support.exchanges or genuine is None:
        raise ConfigError(f"ccxt {ccxt.__version__} has no exchange {ccxt_id!r}.")
    made = type(f"Strict{ccxt_id.title()}", (StrictAnswers, genuine), {})(options)
    made.lists_candles = ccxt_id in LISTING_CANDLES
    return made


def _decoded(body: str) -> Any:
    """JSON; the standard library reads what orjson refuses as a whole: NaN, 1e999, half a pair.

    Raises:
        ValueError: no JSON.
        RecursionError: nested too deeply.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg:
            raise RecursionError from None
    return json.loads(body, parse_int=_whole)


def _whole(digits: str) -> int | float:
    """Python itself refuses more than 4,300 digits."""
    return int(digits) if len(digits) < _LONGEST_INTEGER else float(digits)


def _holds(body: Any, rows: list[Any], depth: int = 4) -> bool:
    """Whether this very list object is part of the decoded answer."""
    if body is rows:
        return True
    if depth and isinstance(body, dict):
        return any(_holds(value, rows, depth - 1) for value in body.values())
    return False
