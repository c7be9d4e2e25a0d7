"""What a request asks of the budget, and what an exchange's refusal tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import pytest

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.pacing import PaceCounts
from crypto_pipeline.errors import (
    DatabaseError,
    ExchangeBlocked,
    ExchangeError,
    ExchangeUnavailable,
    RateLimited,
)
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.conftest import NOW, SYMBOLS, WINDOW, Asker


class Book:
    """A budget that grants everything and notes it; ``raising`` instead at the n-th request."""

    def __init__(self, raising: dict[int, Exception] | None = None) -> None:
        self.counts = PaceCounts()
        self.costs: list[float] = []
        self.told: list[Any] = []
        self.raising = raising or {}

    async def acquire(self, cost_ms: float) -> None:
        self.costs.append(cost_ms)
        if len(self.costs) in self.raising:
            raise self.raising[len(self.costs)]

    async def refused(self, *, retry_after: float | None, banned: bool) -> None:
        self.told.append((retry_after, banned))

    async def denied(self, reason: str) -> None:
        self.told.append(reason)

    async def __aenter__(self) -> object:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def paced(
    asker: Asker, key: str, book: Book, *, load: bool = True, **fields: Any
) -> ExchangeError | None:
    """Load the markets, then ask for one window once; how it failed."""
    once = {"retry": {"attempts": 1}, **fields}
    config = asker.config(key, ccxt={"enableRateLimit": True}, **once)

    async def inside() -> ExchangeError | None:
        async with ExchangeWrapper(
            key=key, config=config, clock=lambda: NOW, pacer=book
        ) as wrapper:
            wrapper._ccxt.timeout_on_exit = 0
            try:
                if load:
                    await wrapper.load_markets()
                await wrapper.fetch(Series(SYMBOLS[key], "1m"), WINDOW)
            except ExchangeError as error:
                return error
            return None

    return asyncio.run(inside())


@pytest.mark.parametrize(("key", "cost"), [("binance", 20), ("kraken", 1_200)])
def test_every_request_takes_its_real_cost_markets_too(asker: Asker, key: str, cost: int) -> None:
    """ccxt charges less than some exchanges do: candles cost what the table of habits says."""
    book = Book()
    paced(asker, key, book)
    assert len(book.costs) == 2 == len(asker.simulator.control.arrivals(exchange=key))
    assert book.costs[1] == cost
    other = Book()
    paced(asker, key, other, habits={"cost_ms": 3_456})
    assert other.costs == [book.costs[0], 3_456]


RATE = '{"error":["EAPI:Rate limit exceeded"]}'


@pytest.mark.parametrize(
    ("key", "fault", "kind", "told"),
    [
        ("binance", {"status": 429, "headers": {"Retry-After": "7"}}, RateLimited, (7.0, False)),
        ("binance", {"status": 429}, RateLimited, (None, False)),
        ("binance", {"status": 418, "headers": {"retry-after": "90"}}, RateLimited, (90.0, True)),
        ("coinbaseexchange", {"status": 429}, RateLimited, (None, False)),
        ("kraken", {"act": "body", "body": RATE}, RateLimited, (None, False)),
        ("kraken", {"status": 503, "headers": {"Retry-After": "9"}}, ExchangeUnavailable, (9.0, False)),
        ("kraken", {"status": 503}, ExchangeUnavailable, None),
        ("kraken", {"act": "drop"}, ExchangeUnavailable, None),
    ],
)  # fmt: skip
def test_whatever_says_too_often_is_told_to_all(
    asker: Asker, key: str, fault: dict[str, Any], kind: type[ExchangeError], told: Any
) -> None:
    """429 came as three classes of ccxt's, and as HTTP 200; Retry-After counts wherever it stands."""
    book = Book()
    fault = {"act": "status", "body": "{}", "endpoint": "candles", **fault}
    asker.simulator.control.add_fault(exchange=key, **fault)
    assert type(paced(asker, key, book)) is kind
    assert book.told == ([] if told is None else [told])


@pytest.mark.parametrize("status", [451, 403])
def test_a_refused_address_is_told_to_all_with_its_reason(asker: Asker, status: int) -> None:
    """A country block is final: other runs say so instead of finding out one by one."""
    book = Book()
    asker.simulator.control.add_fault(act="status", status=status, exchange="kraken")
    assert type(paced(asker, "kraken", book)) is ExchangeBlocked
    (reason,) = book.told
    assert reason.startswith("kraken: loading its markets")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RateLimited("Leave it alone.", hint="wait.", retry_after=500),
        lambda: ExchangeBlocked("It does not serve us.", hint="move."),
    ],
)
def test_a_pause_that_others_were_asked_for_is_not_told_back(
    asker: Asker, make: Callable[[], ExchangeError]
) -> None:
    """The second request of one call met it after the first was answered: the pause grew each time."""
    book = Book({2: make()})
    error = paced(asker, "binance", book, load=False, retry={"attempts": 3})
    assert type(error) is type(make())
    assert str(error).count("What to do:") == 1
    assert error.http_status is None
    assert error.retry_after == make().retry_after
    assert book.told == []
    assert len(book.costs) == 2
    assert len(asker.simulator.control.arrivals(exchange="binance")) == 1


def test_a_budget_that_cannot_be_asked_fails_closed(asker: Asker) -> None:
    """At once, as the database's failure, and without a request."""
    book = Book({1: DatabaseError("The database is away.")})
    with pytest.raises(DatabaseError, match="is away"):
        paced(asker, "binance", book, retry={"attempts": 5})
    assert len(book.costs) == 1
    assert asker.simulator.control.arrivals(exchange="binance") == []
