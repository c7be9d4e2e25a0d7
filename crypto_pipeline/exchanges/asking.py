"""One request to an exchange: paced, tried again where that can help, its failure told by type."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_exponential

from crypto_pipeline.config.model import RetryConfig
from crypto_pipeline.core.pacing import Pacer
from crypto_pipeline.errors import (
    CryptoPipelineError,
    DatabaseError,
    ExchangeBlocked,
    ExchangeError,
    RateLimited,
)
from crypto_pipeline.exchanges.clock import ExchangeClock
from crypto_pipeline.exchanges.exchanged import CURRENT, Exchanged
from crypto_pipeline.exchanges.failures import told

Clock = Callable[[], int]

#: Longest pause an exchange may impose on one request; what it asks beyond that ends the request.
LONGEST_RETRY_AFTER: Final = 60.0

#: The status by which binance says that it refuses the address for a time, not the request.
_BANNED: Final = 418


def system_clock() -> int:
    """Our clock in ms."""
    return time.time_ns() // 1_000_000


@dataclass
class RequestCounts:
    """What a run asked of one exchange."""

    requests: int = 0
    retried: int = 0


class Asker:
    """Calls ccxt for one exchange.

    Args:
        retry: how often, and how long in between.
        secrets: values that must not appear in any message.
        pacer: the budget of all processes; told when the exchange refuses.
    """

    def __init__(
        self, *, retry: RetryConfig, secrets: tuple[str, ...], pacer: Pacer | None
    ) -> None:
        self.counts = RequestCounts()
        self.clock = ExchangeClock()
        self._retry = retry
        self._secrets = secrets
        self._pacer = pacer

    def count(self) -> None:
        """Another request goes out."""
        self.counts.requests += 1

    async def ask(
        self,
        call: Callable[..., Any],
        tried: str,
        *args: Any,
        cost_ms: float | None = None,
        **named: Any,
    ) -> Exchanged:
        """Call ccxt; what was seen on the wire.

        Args:
            call: a method of ccxt's exchange.
            tried: the exchange, series and window, as a person would say it.
            args: of the call.
            cost_ms: what its request takes of the budget; None as ccxt says.
            named: arguments of the call.

        Raises:
            ExchangeError: typed by whether a rerun helps, after the configured attempts.
            DatabaseError: the budget cannot be asked.
        """
        backoff = wait_exponential(
            multiplier=self._retry.first_wait_seconds,
            min=self._retry.first_wait_seconds,
            max=self._retry.longest_wait_seconds,
        )
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(self._retry.attempts),
            wait=lambda state: max(backoff(state), _asked_to_wait(state)),
            retry=retry_if_exception(_worth_another_try),
            reraise=True,
        ):
            with attempt:
                if attempt.retry_state.attempt_number > 1:
                    self.counts.retried += 1
                return await self._once(call, tried, args, cost_ms, named)
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _once(
        self,
        call: Callable[..., Any],
        tried: str,
        args: tuple[Any, ...],
        cost_ms: float | None,
        named: dict[str, Any],
    ) -> Exchanged:
        seen = Exchanged(cost_ms=cost_ms)
        failure: ExchangeError | None = None
        answered = True
        token = CURRENT.set(seen)
        try:
            await call(*args, **named)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - ccxt raises anything
            failure = told(error, tried=tried, seen=seen, redact=self._secrets)
            # The budget's own: another request of this call may have been answered before.
            answered = not isinstance(error, RateLimited | ExchangeBlocked)
        finally:
            CURRENT.reset(token)
            self.clock.observe(seen)
        if failure is not None:
            if answered and seen.status is not None:
                await self._tell_pacer(failure, seen)
            raise failure  # here, without ccxt's error in its chain: that may hold credentials
        return seen

    async def _tell_pacer(self, failure: ExchangeError, seen: Exchanged) -> None:
        """Stop the other processes, too, where the exchange itself said that it is too much."""
        if self._pacer is None:
            return
        if isinstance(failure, ExchangeBlocked):
            await self._pacer.denied(failure.message)
        elif isinstance(failure, RateLimited) or seen.retry_after is not None:
            await self._pacer.refused(retry_after=seen.retry_after, banned=seen.status == _BANNED)


def _worth_another_try(error: BaseException) -> bool:
    if not isinstance(error, CryptoPipelineError) or not error.rerun_helps:
        return False
    if isinstance(error, DatabaseError):
        return False  # a budget that cannot be asked fails closed, at once
    return (getattr(error, "retry_after", None) or 0.0) <= LONGEST_RETRY_AFTER


def _asked_to_wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return float(getattr(error, "retry_after", None) or 0.0)
