"""One request budget for all processes: places, pauses, and what it says when nothing goes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from crypto_pipeline.database.budget import SharedBudget
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.overview import BudgetOverview, budget_overview
from crypto_pipeline.errors import DatabaseError, ExchangeBlocked, RateLimited
from crypto_pipeline_tests.askers import keep_to, most_within

NAME = "binance"
ROW = "SELECT {} FROM request_budgets WHERE name = %s"
LEFT = "extract(epoch FROM blocked_until - clock_timestamp())::float8"
BUSY = 1.0  # what a busy machine may be late


@pytest.fixture(scope="module")
def module_url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def url(module_url: str) -> str:
    with connect(module_url) as conn:
        conn.execute("TRUNCATE request_budgets")
    return module_url


def budget(url: str, *, live: bool = False, share: float = 1.0, name: str = NAME) -> SharedBudget:
    return SharedBudget(url, name=name, share=share, live=live)


def row(url: str, *columns: str) -> Any:
    with connect(url) as conn:
        found = conn.execute(ROW.format(", ".join(columns)), [NAME]).fetchone()
    assert found is not None
    return found if len(columns) > 1 else found[0]


def put(url: str, **columns: str) -> None:
    """Set columns of the row, which need not be there, to expressions."""
    with connect(url) as conn:
        conn.execute(
            "INSERT INTO request_budgets (name) VALUES (%s) ON CONFLICT DO NOTHING", [NAME]
        )
        conn.execute(
            f"UPDATE request_budgets SET {', '.join(f'{c} = {e}' for c, e in columns.items())}"
        )


def using(url: str, use: Callable[[SharedBudget], Coroutine[Any, Any, Any]], **how: Any) -> Any:
    async def inside() -> Any:
        async with budget(url, **how) as pacer:
            return await use(pacer)

    return asyncio.run(inside())


def acquire(url: str, *, cost_ms: float = 1.0, times: int = 1, **how: Any) -> float:
    """Take places one after the other; seconds it took."""

    async def use(pacer: SharedBudget) -> float:
        began = time.monotonic()
        for _ in range(times):
            await pacer.acquire(cost_ms)
        return time.monotonic() - began

    return float(using(url, use, **how))


def refuse(url: str, *, retry_after: float | None = None, banned: bool = False) -> None:
    using(url, lambda pacer: pacer.refused(retry_after=retry_after, banned=banned))


def asking(url: str, seconds: float, *, tasks: int, cost_ms: float) -> list[int]:
    """A run that asks all the time, as many requests at once; when each went out, ns."""
    went: list[int] = []

    async def use(pacer: SharedBudget) -> None:
        end = time.monotonic() + seconds

        async def work() -> None:
            while time.monotonic() < end:
                await pacer.acquire(cost_ms)
                went.append(time.time_ns())

        await asyncio.gather(*(work() for _ in range(tasks)))

    using(url, use)
    return went


# --- places


def test_runs_together_keep_to_the_budget_in_fair_shares(url: str) -> None:
    """Two limiters of ccxt made 40 requests a second on a budget of 20; a bucket gave unfair shares.

    Run with unlike appetites: one task against eight.
    """
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(asking, url, 5, tasks=n, cost_ms=50) for n in (1, 2, 8, 8)]
        went = [run.result() for run in runs]
    everything = [at for run in went for at in run]
    assert keep_to(everything, 20)
    assert min(map(len, went)) >= len(everything) / len(went) / 2


def test_a_request_takes_its_weight_of_the_share(url: str) -> None:
    """Half the limit may be used, so a request of 40 ms takes 80; one that costs more, more."""
    for cost in (40, 7):
        put(url, next_at="clock_timestamp() + interval '1 s'")
        before = row(url, "next_at")
        acquire(url, cost_ms=cost, share=0.5, live=True)
        assert row(url, "next_at") - before == timedelta(milliseconds=2 * cost)


def test_a_request_that_costs_nothing_waits_for_nobody(url: str) -> None:
    """ccxt's `rateLimit: 0`, of an exchange whose cost nobody knows."""
    assert acquire(url, cost_ms=0.0, times=20) < BUSY


def test_close_places_are_taken_together_and_used_one_by_one(url: str) -> None:
    """A statement a place is most of what a place costs, and the rate is the same without."""
    statements = []

    async def use(pacer: SharedBudget) -> list[float]:
        take = pacer._take

        async def counted(cost_ms: float, wanted: int) -> Any:
            statements.append(wanted)
            return await take(cost_ms, wanted)

        pacer._take = counted  # type: ignore[method-assign]
        went: list[float] = []

        async def work() -> None:
            for _ in range(10):
                await pacer.acquire(20.0)
                went.append(time.monotonic())

        await asyncio.gather(*(work() for _ in range(8)))
        return went

    went = using(url, use, share=0.9)
    assert sum(statements) >= len(went) == 80
    assert len(statements) < 30
    assert most_within([int(at * 1e9) for at in went], 1) <= 50
    assert went[-1] - went[0] >= 79 * 0.02 / 0.9 * 0.95


def test_time_nobody_used_is_no_credit(url: str) -> None:
    """After a quiet hour a run must not send an hour's requests in a second."""
    put(url, next_at="clock_timestamp() - interval '1 hour'")
    assert acquire(url, cost_ms=50, times=5) >= 0.2 - 0.025


def test_a_backfill_takes_no_place_far_ahead_and_a_minute_run_does(url: str) -> None:
    """Whoever may queue far ahead stands before the next minute run; a minute run may."""

    async def use(pacer: SharedBudget) -> None:
        await asyncio.wait_for(pacer.acquire(50), 0.5)

    for live in (False, True):
        put(url, next_at="clock_timestamp() + interval '20 seconds'")
        before = row(url, "next_at")
        with pytest.raises(TimeoutError):
            using(url, use, live=live)
        assert (row(url, "next_at") > before) is live


def test_a_minute_run_does_not_wait_behind_backfills_request_by_request(url: str) -> None:
    """Each of its requests waited 0.3 s when only one of them at a time was in the queue."""

    async def use(pacer: SharedBudget) -> float:
        began = time.monotonic()
        queue = iter(range(40))

        async def work() -> None:
            for _ in queue:
                await pacer.acquire(50)

        await asyncio.gather(*(work() for _ in range(8)))
        return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(asking, url, 6, tasks=8, cost_ms=50) for _ in range(3)]
        time.sleep(1)
        took = using(url, use, live=True)
        for run in runs:
            run.result()
    assert took <= 40 * 0.05 + 2  # its own requests, and no more than 2 s behind others


def test_a_minute_runs_first_request_does_not_wait_for_a_dear_one(url: str) -> None:
    """Bitfinex: 2 s a request. What one backfill request takes is longer than a minute run may wait."""
    acquire(url, cost_ms=5_000, share=0.5)
    before = row(url, "next_at")
    assert acquire(url, cost_ms=5_000, share=0.5, live=True) < 2 + BUSY
    assert row(url, "next_at") - before == timedelta(seconds=10), "it is paid for all the same"


def test_requests_that_wake_late_do_not_go_out_in_a_heap(url: str) -> None:
    """A process that was stopped, or busy, had six places behind it and sent six requests at once."""

    async def use(pacer: SharedBudget) -> list[int]:
        went = []

        async def work() -> None:
            await pacer.acquire(50)
            went.append(time.time_ns())

        tasks = [asyncio.create_task(work()) for _ in range(7)]
        await asyncio.sleep(0.06)
        time.sleep(0.5)  # noqa: ASYNC251 - that is the point
        await asyncio.gather(*tasks)
        return went

    went = using(url, use, live=True)
    late = went[2:]
    assert sum(after - before < 20_000_000 for before, after in pairwise(late)) <= 1


def test_the_table_may_be_emptied_while_in_use(url: str) -> None:
    """Somebody clears the tables: runs go on, and a refusal is not lost."""

    async def use(pacer: SharedBudget) -> None:
        for _ in range(3):
            with connect(url) as conn:
                conn.execute("DELETE FROM request_budgets")
            await pacer.acquire(1)
        with connect(url) as conn:
            conn.execute("DELETE FROM request_budgets")
        await pacer.refused(retry_after=30, banned=False)

    using(url, use)
    assert 29 < row(url, LEFT) <= 30


# --- pauses


def test_a_refusal_stops_every_run_until_the_time_given(url: str) -> None:
    """One run is told 429 with Retry-After; the others must not find out for themselves."""
    refuse(url, retry_after=1.5)
    with ThreadPoolExecutor(3) as pool:
        began = time.monotonic()
        waits = list(pool.map(lambda live: acquire(url, live=live), (True, False, False)))
        assert time.monotonic() - began < 1.5 + 2 * BUSY
    assert min(waits) > 1.0
    assert row(url, "strikes", "refused", "bans") == (1, 1, 0)


def test_a_refusal_that_names_no_time_pauses_two_seconds(url: str) -> None:
    """An exchange that does not say how long is not asked again in the same second."""
    refuse(url)
    assert 1 < row(url, LEFT) <= 2


def test_places_taken_before_a_refusal_are_not_used_in_the_pause(url: str) -> None:
    """Up to 300 ms of requests had their places when the exchange said 429."""
    put(url, next_at="clock_timestamp() + interval '250 ms'")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(acquire, url, cost_ms=5, live=live) for live in (True, False)]
        deadline = time.monotonic() + 5
        while row(url, "next_at < clock_timestamp() + interval '10 ms'"):
            assert time.monotonic() < deadline
        refuse(url, retry_after=2)
        assert min(run.result() for run in waiting) > 1.5


def test_the_run_that_was_refused_sends_nothing_more(url: str) -> None:
    """Its own requests that wait know at once, before the database does."""

    async def use(pacer: SharedBudget) -> float:
        await pacer.acquire(10)
        began = time.monotonic()
        waiting = asyncio.create_task(pacer.acquire(10))
        await pacer.refused(retry_after=1, banned=False)
        await waiting
        return time.monotonic() - began

    assert using(url, use) > 0.95


def test_refusals_during_a_pause_lengthen_nothing(url: str) -> None:
    """Eight requests were under way when the limit was hit: eight 429 are one strike."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: refuse(url, retry_after=20), range(8)))
    assert row(url, "strikes", "refused") == (1, 8)
    left = row(url, LEFT)
    refuse(url)
    refuse(url, retry_after=3)
    assert row(url, LEFT) <= left
    refuse(url, retry_after=40, banned=True)
    assert 39 < row(url, LEFT) <= 40, "the exchange itself names a later time"
    assert row(url, "strikes", "refused", "bans") == (1, 11, 1)


def test_each_further_refusal_doubles_the_pause_up_to_an_hour(url: str) -> None:
    """Who is refused again right after a pause has not waited long enough."""
    for strike, expected in enumerate((10, 20, 40, 80), 1):
        refuse(url, retry_after=10)
        assert row(url, "strikes") == strike
        assert expected - 1 < row(url, LEFT) <= expected
        put(url, blocked_until="clock_timestamp() - interval '1 s'")
    put(url, strikes="5000")
    refuse(url, retry_after=10)
    assert 3_599 < row(url, LEFT) <= 3_600
    put(url, blocked_until="clock_timestamp() - interval '1 s'")
    refuse(url, retry_after=86_400)
    assert 86_399 < row(url, LEFT) <= 86_400, "never shorter than what the exchange asks"


def test_strikes_are_forgiven_after_ten_minutes(url: str) -> None:
    """A refusal in the morning must not make one in the evening cost an hour."""
    put(url, strikes="4", blocked_until="clock_timestamp() - interval '9 minutes'")
    refuse(url, retry_after=2)
    assert row(url, "strikes") == 5
    put(url, blocked_until="clock_timestamp() - interval '11 minutes'")
    refuse(url, retry_after=2)
    assert row(url, "strikes") == 1
    assert row(url, LEFT) <= 2


def test_after_a_pause_requests_go_one_by_one(url: str) -> None:
    """All that waited must not go out together at the moment the pause ends."""
    refuse(url, retry_after=1)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(asking, url, 2.5, tasks=4, cost_ms=50) for _ in range(3)]
        went = [at for run in runs for at in run.result()]
    assert most_within(went, 0.25) <= 7


def test_a_long_pause_ends_the_run_at_once(url: str) -> None:
    """A run that sleeps for an hour holds its place among Dagster's runs; the next one asks again."""
    refuse(url, retry_after=300)
    for live in (True, False):
        with pytest.raises(RateLimited, match=r"left alone for another (29\d|300) s") as raised:
            acquire(url, live=live)
        assert raised.value.retry_after == pytest.approx(300, abs=10)
        assert raised.value.rerun_helps


def test_an_address_that_is_not_served_stops_every_run_with_the_reason(url: str) -> None:
    """HTTP 451: asking on from other runs gets the address banned, and each would say it anew."""
    using(url, lambda pacer: pacer.denied("HTTP 451: restricted location"))
    assert 899 < row(url, LEFT) <= 900
    refuse(url)  # of a request that was under way
    with pytest.raises(
        ExchangeBlocked, match=r"not serve this address.*HTTP 451: restricted"
    ) as raised:
        acquire(url)
    assert not raised.value.rerun_helps
    assert row(url, "bans") == 1
    put(url, blocked_until="clock_timestamp()")
    acquire(url)
    refuse(url, retry_after=100)
    with pytest.raises(RateLimited):
        acquire(url)


def test_another_budget_goes_on(url: str) -> None:
    """One exchange's ban, or one egress address's, is no other's."""
    refuse(url, retry_after=300)
    acquire(url, name="kraken")
    acquire(url, name="binance via tunnel")


# --- the database


def test_without_the_database_nothing_goes_out(url: str) -> None:
    """Fails closed: nothing could be stored, and a ban lasts longer than an outage."""

    async def use(pacer: SharedBudget) -> None:
        await pacer.acquire(1)
        with connect(url) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname ="
                " current_database() AND application_name = 'crypto_pipeline budget'"
            )
        for _ in range(2):
            with pytest.raises(DatabaseError, match="place in the request budget 'binance'"):
                await pacer.acquire(1)
        raise RateLimited("the run's own failure")

    with pytest.raises(RateLimited, match="own failure"):  # not that its figures were not noted
        using(url, use)


@pytest.mark.parametrize("place", ["database", "server"])
def test_a_run_does_not_begin_without_the_database(url: str, place: str) -> None:
    """The message says which database, and the connection does not leak."""
    wrong = url.rsplit("/", 1)[0] + "/postgres"  # there, but without our tables
    if place == "server":
        wrong = "postgresql://nobody@127.0.0.1:1/nothing"
    with pytest.raises(DatabaseError) as raised:
        acquire(wrong)
    assert ("request_budgets" in str(raised.value)) is (place == "database")


# --- figures


def test_what_it_did_is_counted(url: str) -> None:
    """`status` reads these: requests, waits, refusals and bans of all runs together."""
    acquire(url, cost_ms=50, times=5)
    acquire(url, cost_ms=50, times=3, live=True)
    refuse(url, retry_after=90, banned=True)
    with connect(url) as conn:
        found = budget_overview(conn, [NAME, "unused"])
    mine = found[NAME]
    assert (mine.requests, mine.refused, mine.bans) == (8, 1, 1)
    assert 0.3 < mine.waited_seconds < 0.4 + 2 * BUSY
    assert mine.blocked_until is not None
    assert found["unused"] == BudgetOverview()
    put(url, blocked_until="clock_timestamp() - interval '1 s'")
    with connect(url) as conn:
        assert budget_overview(conn, [NAME])[NAME].blocked_until is None


def test_a_running_backfill_is_counted_while_it_runs(url: str) -> None:
    """Figures that come with a run's end are of no use in a backfill of a week, and lost in a crash."""

    async def use(pacer: SharedBudget) -> tuple[int, int]:
        for _ in range(5):
            await pacer.acquire(1)
        return row(url, "requests"), pacer.counts.requests

    noted, made = using(url, use)
    assert (noted, made) == (4, 5)
    assert row(url, "requests") == 5
