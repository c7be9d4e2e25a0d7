"""Every error this project raises on purpose, in one tree.

Each error says what was tried, where, and what to do about it, and whether running the same thing
again can help (``rerun_helps``): retries, the schedule and the person reading the run page all go
by that one answer. Texts from outside are in it as far as a terminal can show them.

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

from typing import ClassVar

from crypto_pipeline.plaintext import shown


class CryptoPipelineError(Exception):
    """Base of the tree.

    Args:
        message: what was tried, where, and what came of it.
        hint: what the reader can do about it; by default what the class says.
        rerun_helps: overrides the class's answer to "can the same thing succeed later?".
    """

    rerun_helps: bool = False
    #: What to do about any error of the class.
    what_to_do: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, hint: str | None = None, rerun_helps: bool | None = None
    ) -> None:
        super().__init__(shown(message))
        self.message = shown(message)
        self.hint = self.what_to_do if hint is None else shown(hint)
        if rerun_helps is not None:
            self.rerun_helps = rerun_helps

    def __str__(self) -> str:
        return f"{self.message} What to do: {self.hint}" if self.hint else self.message


class ConfigError(CryptoPipelineError):
    """``pipeline.yaml`` or an environment variable is wrong.

    The message itself says what to do: it names the key and what is allowed there.
    """


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
    what_to_do = (
        "nothing, if it passes: the next tick asks again. Otherwise look at the exchange's status"
        " page and at this machine's network or proxy."
    )


class BadAnswer(ExchangeError):
    """An answer that is not what the exchange documents (HTML, cut JSON, a wrong shape)."""

    rerun_helps = True
    what_to_do = (
        "nothing, if it passes: the next tick asks again. If it stays, a proxy or a captive page"
        " stands between this machine and the exchange, or its API has changed."
    )


class RateLimited(ExchangeError):
    """Asked too often (418, 429 or the exchange's own words for it)."""

    rerun_helps = True
    what_to_do = (
        "ask less often: fewer symbols, fewer parallel runs, or no other program on this address."
    )


class ExchangeBlocked(ExchangeError):
    """The exchange refuses this address, account or country (451, 403)."""

    what_to_do = (
        "run from an address the exchange serves, or set a proxy under the exchange's key ccxt in"
        " pipeline.yaml; a rerun from here does not help."
    )


class RequestRefused(ExchangeError):
    """The request itself is wrong: unknown symbol, unsupported timeframe, bad credentials."""

    what_to_do = (
        "check symbols, timeframes and credentials of this exchange in pipeline.yaml;"
        " `crypto-pipeline doctor` lists what it knows."
    )


class CollectionFailed(CryptoPipelineError):
    """A run got nothing of what it asked for."""

    rerun_helps = True


class LakeError(CryptoPipelineError):
    """The Parquet archive cannot be read or written."""


class DatabaseError(CryptoPipelineError):
    """The database refuses, is away, or holds something else than this version expects."""

    rerun_helps = True
    what_to_do = "nothing, if it passes; otherwise see the log of the database server."


class LocalServiceError(CryptoPipelineError):
    """The local PostgreSQL or a child process does not start or stop."""

    what_to_do = "see the logs in $CRYPTO_PIPELINE_HOME/logs."
