"""One request budget an exchange, shared by every process of a deployment, on the database's clock.

A row holds the next moment at which a request may go out (GCRA). Taking a place is one statement;
only who had to wait asks once more, before it sends, whether the exchange was left alone meanwhile.
Without the database nothing goes out.
"""

from __future__ import annotations

import asyncio
import random
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql

from crypto_pipeline.core.pacing import PaceCounts
from crypto_pipeline.database.connection import open_async_connection
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import table_name
from crypto_pipeline.database.tables import REQUEST_BUDGETS
from crypto_pipeline.errors import ExchangeBlocked, RateLimited

#: How far ahead a request may take its place. The minute's runs go in front of any backfill: those
#: queue so little ahead that nobody waits behind them.
LIVE_AHEAD_MS: Final = 600_000.0
BACKFILL_AHEAD_MS: Final = 300.0

#: A longer pause is not waited for: the run ends, and the next one asks again.
LONGEST_WAIT_SECONDS: Final = 60.0

#: The pause after a refusal that names none; each further one doubles it, up to the longest.
_FIRST_PAUSE_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 3_600.0
#: Of an exchange that does not serve this address: asked again a few times a day.
_DENIED_PAUSE_SECONDS: Final = 900.0
_FORGIVEN_AFTER_SECONDS: Final = 600.0

#: Who waited for longer than this looks again whether the exchange is to be left alone.
_LOOK_AGAIN_SECONDS: Final = 0.02

_TAKE: Final = sql.SQL(
    "WITH granted AS ("
    " UPDATE {budgets} SET requests = requests + 1,"
    "  next_at = greatest(next_at, clock_timestamp()) + %(cost)s * interval '1 ms'"
    " WHERE name = %(name)s AND blocked_until <= clock_timestamp()"
    "  AND next_at <= clock_timestamp() + %(ahead)s * interval '1 ms'"
    " RETURNING next_at - %(cost)s * interval '1 ms' - clock_timestamp() AS wait"
    ") SELECT true, extract(epoch FROM wait)::float8, 0::float8, '' FROM granted"
    " UNION ALL SELECT false, extract(epoch FROM greatest(blocked_until,"
    "  next_at - %(ahead)s * interval '1 ms') - clock_timestamp())::float8,"
    "  extract(epoch FROM blocked_until - clock_timestamp())::float8, denied"
    " FROM {budgets} WHERE name = %(name)s AND NOT EXISTS (SELECT FROM granted)"
).format(budgets=table_name(REQUEST_BUDGETS))

_MAKE: Final = sql.SQL("INSERT INTO {} (name) VALUES (%(name)s) ON CONFLICT DO NOTHING").format(
    table_name(REQUEST_BUDGETS)
)

_BLOCKED: Final = sql.SQL(
    "SELECT blocked_until > clock_timestamp() FROM {} WHERE name = %(name)s"
).format(table_name(REQUEST_BUDGETS))

#: Refusals that arrive during a pause are of requests under way before it: they lengthen nothing.
_BLOCK: Final = sql.SQL(
    "WITH struck AS (SELECT CASE"
    "  WHEN blocked_until > clock_timestamp() THEN greatest(strikes, 1)"
    "  WHEN blocked_until < clock_timestamp() - %(forgiven)s * interval '1 s' THEN 1"
    "  ELSE strikes + 1 END AS strikes"
    " FROM {budgets} WHERE name = %(name)s FOR UPDATE),"
    " pause AS (SELECT strikes, least(%(longest)s, %(pause)s * 2 ^ (strikes - 1))"
    "  * interval '1 s' AS length FROM struck)"
    " UPDATE {budgets} SET strikes = pause.strikes, refused = refused + 1,"
    "  bans = bans + %(banned)s::int, denied = %(denied)s,"
    "  blocked_until = greatest(blocked_until, clock_timestamp() + pause.length),"
    "  next_at = greatest(next_at, blocked_until, clock_timestamp() + pause.length)"
    " FROM pause WHERE name = %(name)s"
).format(budgets=table_name(REQUEST_BUDGETS))

_WAITED: Final = sql.SQL(
    "UPDATE {} SET waited_seconds = waited_seconds + %(waited)s WHERE name = %(name)s"
).format(table_name(REQUEST_BUDGETS))


class SharedBudget:
    """The budget of one exchange, used by one run; an async context manager.

    Args:
        url: of the database.
        name: of the budget: exchange and egress address.
        share: of the exchange's limit that may be used.
        live: the run is one of the minute's.
    """

    def __init__(self, url: str, *, name: str, share: float, live: bool) -> None:
        self.counts = PaceCounts()
        self._url = url
        self._name = name
        self._share = share
        self._ahead = LIVE_AHEAD_MS if live else BACKFILL_AHEAD_MS
        self._conn: psycopg.AsyncConnection | None = None
        self._turn = asyncio.Lock()  # requests of one run take places in the order they came
        self._stopping = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._conn = await open_async_connection(
            self._url, application_name="crypto_pipeline budget"
        )
        with database_errors(self._conn, f"set up the request budget {self._name!r}"):
            # A place lost in a crash of the server is one request; a flush for each is a disk's speed.
            await self._conn.execute("SET synchronous_commit = off")
            await self._conn.execute(_MAKE, {"name": self._name})
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        conn = self._open()
        try:
            if kind is None and self.counts.waited_seconds:
                waited = {"name": self._name, "waited": self.counts.waited_seconds}
                with database_errors(conn, f"close the request budget {self._name!r}"):
                    await conn.execute(_WAITED, waited)
        finally:
            await conn.close()

    async def acquire(self, cost_ms: float) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        began = asyncio.get_running_loop().time()
        async with self._turn:
            tries = 0
            while not await self._taken(cost_ms / self._share, tries):
                tries += 1
        self.counts.requests += 1
        self.counts.waited_seconds += asyncio.get_running_loop().time() - began

    async def refused(self, *, retry_after: float | None, banned: bool) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        pause = _FIRST_PAUSE_SECONDS if retry_after is None else retry_after
        await self._stop(pause, banned=banned)

    async def denied(self, reason: str) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        await self._stop(_DENIED_PAUSE_SECONDS, banned=True, denied=reason)

    async def _stop(self, pause: float, *, banned: bool, denied: str = "") -> None:
        self.counts.refused += 1
        asked = {
            "name": self._name,
            "pause": pause,
            "longest": max(_LONGEST_PAUSE_SECONDS, pause),
            "forgiven": _FORGIVEN_AFTER_SECONDS,
            "banned": banned,
            "denied": denied[:500],
        }
        async with self._stopping:
            conn = self._open()
            with database_errors(conn, f"stop the requests of {self._name!r}"):
                await conn.execute(_BLOCK, asked)

    async def _taken(self, cost_ms: float, tries: int) -> bool:
        """Whether the request may go out now; waits for its place, or for the next try."""
        granted, wait, blocked, denied = await self._take(cost_ms)
        if not granted:
            if blocked > LONGEST_WAIT_SECONDS and denied:
                raise ExchangeBlocked(
                    f"{self._name} does not serve this address, as another request found: {denied}",
                    hint=f"see there; it is asked again in {blocked:.0f} s.",
                )
            if blocked > LONGEST_WAIT_SECONDS:
                raise RateLimited(
                    f"{self._name}: the exchange asked to be left alone for another"
                    f" {blocked:.0f} s, so no process asks it.",
                    hint="nothing: requests go on by themselves when the pause is over.",
                    retry_after=blocked,
                )
            # Not all at one moment, and who has tried often before who has not: shares stay fair.
            chance = random.uniform(0, cost_ms / 1_000) / 2**tries  # noqa: S311
            await asyncio.sleep(max(wait, 0.0) + chance)
            return False
        if wait > 0:
            await asyncio.sleep(wait)
        return wait < _LOOK_AGAIN_SECONDS or not await self._blocked()

    async def _take(self, cost_ms: float) -> tuple[bool, float, float, str]:
        conn = self._open()
        request = {"name": self._name, "cost": cost_ms, "ahead": self._ahead}
        with database_errors(conn, f"take a place in the request budget {self._name!r}"):
            for _ in range(2):
                row = await (await conn.execute(_TAKE, request)).fetchone()
                if row is not None:
                    return row[0], row[1], row[2], row[3]
                await conn.execute(_MAKE, {"name": self._name})  # somebody emptied the table
        raise AssertionError("unreachable: the row was just made")

    async def _blocked(self) -> bool:
        conn = self._open()
        with database_errors(conn, f"look at the request budget {self._name!r}"):
            row = await (await conn.execute(_BLOCKED, {"name": self._name})).fetchone()
        return row is not None and bool(row[0])

    def _open(self) -> psycopg.AsyncConnection:
        if self._conn is None:
            raise AssertionError("the budget is used outside its context")
        return self._conn
