"""What a failed request means: may it be tried again, and what should a person do.

ccxt's classes mislead both ways (a cut connection is a bare ``ExchangeError``, a country block a
``NetworkError``), so status and class are read together.
"""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from ccxt.base import errors as ccxt_errors

from crypto_pipeline.errors import (
    BadAnswer,
    ExchangeBlocked,
    ExchangeError,
    ExchangeUnavailable,
    RateLimited,
    RequestRefused,
)
from crypto_pipeline.exchanges.exchanged import Exchanged
from crypto_pipeline.redaction import redacted

_RATE_STATUS: Final = {418, 429}
#: Exchange codes that mean "later", found in ccxt's bare ExchangeError texts.
_LATER: Final = (
    "EService:Timeout", "EService:Throttled", "EService:Deadline", "EService:Unavailable",
    "EService:Busy", '"code":-1008', "50061", "10016",
)  # fmt: skip
#: And those that mean "never": this exchange does not know the market.
_NEVER: Final = ("EQuery:Unknown asset pair",)
#: Statuses by which an exchange calls the request itself wrong, if it says so in its own JSON.
_REFUSED_STATUS: Final = {400, 404, 422}
_KINDS: Final = (ExchangeUnavailable, BadAnswer, RateLimited, ExchangeBlocked, RequestRefused)


def told(
    error: BaseException, *, tried: str, seen: Exchanged, redact: tuple[str, ...]
) -> ExchangeError:
    """The typed error for whatever a request raised.

    Args:
        error: what ccxt, aiohttp or the strict checks raised.
        tried: the exchange, series and window, as a person would say it.
        seen: the reply, as far as one came.
        redact: values that must not be shown.
    """
    kind = _kind(error, seen)
    ours = error if isinstance(error, ExchangeError) else None
    reason = str(error) or type(error).__name__
    if ours is not None:
        reason = ours.message.rstrip(".")
    cause = error.__cause__
    if isinstance(error, ccxt_errors.BaseError):
        reason = f"{type(error).__name__}: {reason}"
        if cause is not None:
            reason += f" ({type(cause).__name__}: {cause})"
    return kind(
        f"{tried}: {' '.join(redacted(reason, redact).split())[:600]}.",
        hint=None if ours is None else ours.hint,
        # what the budget raises is no answer, even if a request before it had one
        http_status=seen.status if ours is None else ours.http_status,
        # a pause that another process was asked for comes with the error, not with an answer
        retry_after=seen.retry_after or getattr(error, "retry_after", None),
    )


def _kind(error: BaseException, seen: Exchanged) -> type[ExchangeError]:  # noqa: PLR0911 - a decision table
    if isinstance(error, ExchangeError):
        kind: type[ExchangeError] = type(error)
        return kind if kind in _KINDS else ExchangeUnavailable
    status, bare = seen.status, type(error) is ccxt_errors.ExchangeError
    if status == 451:
        return ExchangeBlocked
    rate = (ccxt_errors.RateLimitExceeded, ccxt_errors.DDoSProtection)
    if status in _RATE_STATUS or isinstance(error, rate):
        return RateLimited
    if status == 403 or isinstance(error, ccxt_errors.RestrictedLocation):
        return ExchangeBlocked
    later = (ccxt_errors.OperationFailed, aiohttp.ClientError, asyncio.TimeoutError, OSError)
    cause = error.__cause__
    if isinstance(error, ccxt_errors.BadResponse) or _no_http(cause):
        return BadAnswer
    if (status or 0) >= 500 or isinstance(error, later) or (bare and _says(error, _LATER)):
        return ExchangeUnavailable
    if isinstance(cause, aiohttp.ClientError):
        return ExchangeUnavailable
    if not isinstance(error, ccxt_errors.BaseError):
        return BadAnswer  # ccxt's own code stumbling over an answer raises KeyError, TypeError …
    refused = status in _REFUSED_STATUS and isinstance(seen.body, dict)
    if bare and not refused and not _says(error, _NEVER):
        return BadAnswer
    return RequestRefused


def _no_http(cause: BaseException | None) -> bool:
    """Whether aiohttp could not read the answer's head: broken, endless, redirecting in a circle."""
    return isinstance(cause, aiohttp.ClientResponseError) and not isinstance(
        cause, aiohttp.ClientHttpProxyError
    )


def _says(error: BaseException, signs: tuple[str, ...]) -> bool:
    text = str(error)
    return any(sign in text for sign in signs)
