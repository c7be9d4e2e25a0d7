"""One request budget an exchange, shared by every process of a deployment, on the database's clock.

A row holds the next moment at which a request may go out (GCRA). Taking a place is one statement
(:data:`crypto_pipeline.database.functions.TAKE_REQUEST_PLACE`); backfills queue for theirs in the
database, first come, first served, each run with one request at a time. A pause that the exchange
asks for meanwhile is seen by the statements of the run's other requests; only where there was none
in the last moments is the database asked once more. Without it nothing goes out.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import psycopg
from psycopg import sql

from crypto_pipeline.core.pacing import PaceCounts
from crypto_pipeline.database.connection import open_async_connection
from crypto_pipeline.database.failures import Target, database_errors, target_of
from crypto_pipeline.database.statements import lock_keys, table_name
from crypto_pipeline.database.tables import REQUEST_BUDGETS
from crypto_pipeline.errors import DatabaseError, ExchangeBlocked, RateLimited

#: How far ahead a request may take its place. The minute's runs go in front of any backfill: those
#: queue so little ahead that nobody waits behind them.
LIVE_AHEAD_MS: Final = 600_000.0
BACKFILL_AHEAD_MS: Final = 300.0
#: Where one place alone is longer, a minute run's first request goes out after this much all the same.
LIVE_PATIENCE_MS: Final = 1_700.0

#: A longer pause is not waited for: the run ends, and the next one asks again.
LONGEST_WAIT_SECONDS: Final = 60.0

#: The pause after a refusal that names none; each further one doubles it, up to the longest.
_FIRST_PAUSE_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 3_600.0
#: Of an exchange that does not serve this address: asked again a few times a day.
_DENIED_PAUSE_SECONDS: Final = 900.0
_FORGIVEN_AFTER_SECONDS: Final = 600.0

#: Whoever goes out later than this after the database knew of no pause asks it again.
_LOOK_AGAIN_SECONDS: Final = 0.02
#: Requests do not arrive as evenly as they go out: whatever the share, so much of a second is free.
_MOST_SHARE: Final = 0.96
#: Who misses a place by more than what is free of a second, less what the way to the exchange may
#: take of it, takes another: a heap of late requests is more than the limit in one second.
_ON_THE_WAY_SECONDS: Final = 0.02
_LATE_SECONDS: Final = (0.025, 0.25)  # within these bounds

_TAKE: Final = sql.SQL(
    "SELECT place, blocked, reason, queued FROM take_request_place(%(name)s,"
    " %(cost)s * interval '1 ms', %(ahead)s * interval '1 ms', %(turn)s, %(went)s, %(waited)s)"
)

_MAKE: Final = sql.SQL("INSERT INTO {} (name) VALUES (%(name)s) ON CONFLICT DO NOTHING").format(
    table_name(REQUEST_BUDGETS)
)

_BLOCKED: Final = sql.SQL(
    "SELECT blocked_until > clock_timestamp() FROM {} WHERE name = %(name)s"
).format(table_name(REQUEST_BUDGETS))

#: Refusals that arrive during a pause are of requests under way before it: they lengthen it only to
#: the time that the exchange itself names.
_BLOCK: Final = sql.SQL(
    "WITH found AS (SELECT clock_timestamp() AS now, blocked_until > clock_timestamp() AS paused,"
    "  CASE WHEN blocked_until > clock_timestamp() THEN greatest(strikes, 1)"
    "   WHEN blocked_until < clock_timestamp() - %(forgiven)s * interval '1 s' THEN 1"
    "   ELSE strikes + 1 END AS strikes"
    "  FROM {budgets} WHERE name = %(name)s FOR UPDATE),"
    " pause AS (SELECT now, paused, strikes, now + interval '1 s' * CASE WHEN paused THEN %(named)s"
    "   ELSE least(%(longest)s, %(pause)s * 2 ^ least(strikes - 1, 20)) END AS until FROM found)"
    " UPDATE {budgets} SET strikes = pause.strikes, refused = refused + 1,"
    "  bans = bans + %(banned)s::int,"
    "  denied = CASE WHEN paused AND %(denied)s = '' THEN denied ELSE %(denied)s END,"
    "  blocked_until = greatest(blocked_until, until)"
    " FROM pause WHERE name = %(name)s"
).format(budgets=table_name(REQUEST_BUDGETS))

_NOTE: Final = sql.SQL(
    "UPDATE {} SET requests = requests + %(went)s, waited_seconds = waited_seconds + %(waited)s"
    " WHERE name = %(name)s"
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
        self._share = min(share, _MOST_SHARE)
        self._live = live
        least, most = _LATE_SECONDS
        self._tolerance = min(max(1 / self._share - 1 - _ON_THE_WAY_SECONDS, least), most)
        self._conn: psycopg.AsyncConnection | None = None
        self._queue: psycopg.AsyncConnection | None = None  # where the run stands for a place
        (self._in_turn,) = lock_keys(purpose="request place", exchange=name)
        self._opened = AsyncExitStack()
        self._where = Target(database="", host="", user="")
        self._turn = asyncio.Lock()  # requests of one run take places in the order they came
        self._stopping = asyncio.Lock()
        self._open_at = -math.inf  # when the database last knew of no pause
        self._refused_at = -math.inf  # when this run was last refused
        self._first = live  # the next request is a minute run's first
        self._noted = PaceCounts()  # what the database knows of the counts

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            self._conn = await self._connect(opened)
            # A backfill waits in line inside a statement: what is urgent must not wait behind it.
            self._queue = self._conn if self._live else await self._connect(opened)
            self._opened = opened.pop_all()
        return self

    async def _connect(self, opened: AsyncExitStack) -> psycopg.AsyncConnection:
        conn = await open_async_connection(self._url, application_name="crypto_pipeline budget")
        opened.push_async_callback(conn.close)
        self._where = target_of(conn)
        with database_errors(self._where, f"set up the request budget {self._name!r}"):
            # A crash of the server loses a few places; a flush for each is a disk's speed.
            await conn.execute("SET synchronous_commit = off")
            await conn.execute("SET lock_timeout = 0")  # the line may be long
            await conn.execute(_MAKE, {"name": self._name})
        return conn

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What ended the run says more than that the last figures could not be noted.
        lenient = suppress(DatabaseError) if kind is not None else nullcontext()
        async with self._opened:
            with lenient, database_errors(self._where, f"close the request budget {self._name!r}"):
                await self._asked().execute(_NOTE, {"name": self._name, **self._to_note()})

    async def acquire(self, cost_ms: float) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        began = _now()
        tolerance, may_go = self._tolerance, False
        while not may_go:
            async with self._turn:
                place = await self._place(cost_ms / self._share)
            await asyncio.sleep(place - _now())
            may_go = _now() < place + tolerance and await self._still_open()
            tolerance *= 2  # a machine too busy to be in time gets through all the same
        self.counts.requests += 1
        self.counts.waited_seconds += _now() - began

    async def refused(self, *, retry_after: float | None, banned: bool) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        await self._stop(retry_after, banned=banned)

    async def denied(self, reason: str) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        await self._stop(_DENIED_PAUSE_SECONDS, banned=True, denied=reason[:500])

    async def _stop(self, pause: float | None, *, banned: bool, denied: str = "") -> None:
        self.counts.refused += 1
        self._refused_at = math.inf  # until the database knows of it, nothing of ours goes out
        asked = {
            "name": self._name,
            "pause": _FIRST_PAUSE_SECONDS if pause is None else pause,
            "named": pause or 0.0,
            "longest": max(_LONGEST_PAUSE_SECONDS, pause or 0.0),
            "forgiven": _FORGIVEN_AFTER_SECONDS,
            "banned": banned,
            "denied": denied,
        }
        async with self._stopping:
            conn = self._asked()
            try:
                with database_errors(self._where, f"stop the requests of {self._name!r}"):
                    if not (
                        await conn.execute(_BLOCK, asked)
                    ).rowcount:  # somebody emptied the table
                        await conn.execute(_MAKE, {"name": self._name})
                        await conn.execute(_BLOCK, asked)
            finally:
                self._refused_at = _now()

    async def _place(self, cost_ms: float) -> float:
        """Take a place, waiting until there is one; when it is, by the event loop's clock."""
        while True:
            place, blocked, reason = await self._take(cost_ms)
            if place is not None:
                dear = cost_ms > LIVE_PATIENCE_MS and self._first
                self._first = False
                return _now() + (min(place, LIVE_PATIENCE_MS / 1_000) if dear else place)
            if blocked > LONGEST_WAIT_SECONDS and reason:
                raise ExchangeBlocked(
                    f"{self._name} does not serve this address, as another request found: {reason}",
                    hint=f"see there; it is asked again in {blocked:.0f} s.",
                )
            if blocked > LONGEST_WAIT_SECONDS:
                raise RateLimited(
                    f"{self._name}: the exchange asked to be left alone for another"
                    f" {blocked:.0f} s, so no process asks it.",
                    hint="nothing: requests go on by themselves when the pause is over.",
                    retry_after=blocked,
                )
            await asyncio.sleep(blocked)

    async def _take(self, cost_ms: float) -> tuple[float | None, float, str]:
        """Seconds to the place, or None and for how many the exchange is to be left alone, and why."""
        conn, asked_at, counts = self._queued(), _now(), replace(self.counts)
        request = {
            "name": self._name,
            "cost": cost_ms,
            "ahead": LIVE_AHEAD_MS if self._live else _ahead_ms(cost_ms),
            "turn": None if self._live else self._in_turn,
            **self._to_note(),
        }
        with database_errors(self._where, f"take a place in the request budget {self._name!r}"):
            for _ in range(3):
                found = await (await conn.execute(_TAKE, request)).fetchone()
                place, blocked, reason, queued = found or (None,) * 4
                if place is not None:
                    self._open_at, self._noted = asked_at + queued, counts
                    return place, 0.0, ""
                if blocked is not None:
                    self._open_at = -math.inf
                    return None, blocked, reason
                await conn.execute(_MAKE, {"name": self._name})  # somebody emptied the table
        raise DatabaseError(
            f"The request budget {self._name!r} is emptied all the time.",
            hint="see which program deletes from request_budgets (pg_stat_activity), and stop it.",
        )

    async def _still_open(self) -> bool:
        """Whether nobody was refused since the place was taken."""
        if self._refused_at < self._open_at and _now() < self._open_at + _LOOK_AGAIN_SECONDS:
            return True
        conn, asked_at = self._asked(), _now()
        with database_errors(self._where, f"look at the request budget {self._name!r}"):
            row = await (await conn.execute(_BLOCKED, {"name": self._name})).fetchone()
        if row is not None and row[0]:
            return False
        self._open_at = asked_at
        return self._refused_at < asked_at

    def _to_note(self) -> dict[str, float]:
        """What the database does not know of yet: it is told with the next place."""
        return {
            "went": self.counts.requests - self._noted.requests,
            "waited": self.counts.waited_seconds - self._noted.waited_seconds,
        }

    def _asked(self) -> psycopg.AsyncConnection:
        if self._conn is None:
            raise AssertionError("the budget is used outside its context")
        return self._conn

    def _queued(self) -> psycopg.AsyncConnection:
        if self._queue is None:
            raise AssertionError("the budget is used outside its context")
        return self._queue


def _ahead_ms(cost_ms: float) -> float:
    """How far ahead a backfill may take a place: one of them, and what a busy machine is late."""
    return min(BACKFILL_AHEAD_MS, 60.0 + cost_ms)


def _now() -> float:
    return asyncio.get_running_loop().time()
