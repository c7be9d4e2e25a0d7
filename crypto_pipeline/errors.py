"""Every error this project raises on purpose, in one tree.

Each error says what was tried, where, and what to do about it, and whether running the same thing
again can help (``rerun_helps``): retries, the schedule and the person reading the run page all go
by that one answer.

::

    CryptoPipelineError
    ├── ConfigError            pipeline.yaml or an environment variable is wrong
    ├── ExchangeError          an exchange, asked about one series
    │   ├── ExchangeUnavailable    no answer, or one that says "not now"          rerun helps
    │   ├── BadAnswer              an answer that is not what the exchange documents   rerun helps
    │   ├── RateLimited            asked too often; carries retry_after           rerun helps
    │   ├── ExchangeBlocked        this address or country is refused
    │   └── RequestRefused         the request itself is wrong: symbol, timeframe, key
    ├── CollectionFailed       a run got nothing of what it asked for
    ├── LakeError              the Parquet archive cannot be read or written
    ├── DatabaseError          the database refuses or is away
    └── LocalServiceError      the local PostgreSQL or a child process does not start
"""

from __future__ import annotations


class CryptoPipelineError(Exception):
    """Base of the tree.

    Args:
        message: what was tried, where, and what came of it.
        hint: what the reader can do about it.
        rerun_helps: overrides the class's answer to "can the same thing succeed later?".
    """

    rerun_helps: bool = False

    def __init__(
        self, message: str, *, hint: str | None = None, rerun_helps: bool | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if rerun_helps is not None:
            self.rerun_helps = rerun_helps

    def __str__(self) -> str:
        return f"{self.message} What to do: {self.hint}" if self.hint else self.message


class ConfigError(CryptoPipelineError):
    """``pipeline.yaml`` or an environment variable is wrong."""


class ExchangeError(CryptoPipelineError):
    """An exchange, asked about one series, did not give what was asked.

    Attributes:
        http_status: status of the answer, if there was one.
        retry_after: seconds the exchange asked us to wait, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        rerun_helps: bool | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, rerun_helps=rerun_helps)
        self.http_status = http_status
        self.retry_after = retry_after


class ExchangeUnavailable(ExchangeError):
    """No answer, or one that says "not now" (refused connection, timeout, 5xx, maintenance)."""

    rerun_helps = True


class BadAnswer(ExchangeError):
    """An answer that is not what the exchange documents (HTML, cut JSON, a wrong shape)."""

    rerun_helps = True


class RateLimited(ExchangeError):
    """Asked too often (418, 429 or the exchange's own words for it)."""

    rerun_helps = True


class ExchangeBlocked(ExchangeError):
    """The exchange refuses this address, account or country (451, 403)."""


class RequestRefused(ExchangeError):
    """The request itself is wrong: unknown symbol, unsupported timeframe, bad credentials."""


class CollectionFailed(CryptoPipelineError):
    """A run got nothing of what it asked for."""

    rerun_helps = True


class LakeError(CryptoPipelineError):
    """The Parquet archive cannot be read or written."""


class DatabaseError(CryptoPipelineError):
    """The database refuses, is away, or holds something else than this version expects."""

    rerun_helps = True


class LocalServiceError(CryptoPipelineError):
    """The local PostgreSQL or a child process does not start or stop."""
