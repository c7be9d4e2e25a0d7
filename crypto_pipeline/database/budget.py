"""One request budget an exchange, shared by every process of a deployment, on the database's clock.

A row holds the next moment at which a request may go out (GCRA). Taking a place is one statement
(:data:`crypto_pipeline.database.functions.TAKE_REQUEST_PLACE`); backfills queue for theirs in the
database, first come, first served, each run with one request at a time. A pause that the exchange
asks for is notified to every run, so that places taken before are not used in it. Without the
database nothing goes out.

Most of what a place costs is the statement. So where several requests of a run wait and places are
close to each other, one statement takes a few in a row.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from crypto_pipeline.core.pacing import PaceCounts
from crypto_pipeline.database.connection import open_async_connection
from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.listening import ListeningConnection
from crypto_pipeline.database.statements import lock_keys, table_name
from crypto_pipeline.database.tables import REQUEST_BUDGETS
from crypto_pipeline.errors import DatabaseError, ExchangeBlocked, RateLimited

#: How far ahead a request may take its place. The minute's runs go in front of any backfill: those
#: queue so little ahead that nobody waits behind them.
LIVE_AHEAD_MS: Final = 600_000.0
BACKFILL_AHEAD_MS: Final = 300.0
#: Where one place alone is longer, a minute run's first request goes out after this much all the same.
LIVE_PATIENCE_MS: Final = 1_700.0

#: Places so close to each other are taken in a row, of so much time at most: the next run in line, and
#: a minute run, wait for a row as for one dear request.
_CLOSE_MS: Final = 30.0
_IN_A_ROW_MS: Final = 140.0

#: A longer pause is not waited for: the run ends, and the next one asks again.
LONGEST_WAIT_SECONDS: Final = 60.0

#: The pause after a refusal that names none; each further one doubles it, up to the longest.
_FIRST_PAUSE_SECONDS: Final = 2.0
_LONGEST_PAUSE_SECONDS: Final = 3_600.0
#: Of an exchange that does not serve this address: asked again a few times a day.
_DENIED_PAUSE_SECONDS: Final = 900.0
_FORGIVEN_AFTER_SECONDS: Final = 600.0

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

_APPLICATION: Final = "crypto_pipeline budget"
_NO_FLUSH: Final = sql.SQL("SET synchronous_commit = off")

_MAKE: Final = sql.SQL("INSERT INTO {} (name) VALUES (%(name)s) ON CONFLICT DO NOTHING").format(
    table_name(REQUEST_BUDGETS)
)

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

_CHANNEL: Final = "crypto_pipeline_budget"
_TELL: Final = sql.SQL("SELECT pg_notify({}, %(name)s)").format(sql.Literal(_CHANNEL))

_NOTE: Final = sql.SQL(
    "UPDATE {} SET requests = requests + %(went)s, waited_seconds = waited_seconds + %(waited)s"
    " WHERE name = %(name)s"
).format(table_name(REQUEST_BUDGETS))


class _Row:
    """Places in a row, taken for the requests of one cost."""

    def __init__(self) -> None:
        self.places: deque[tuple[float, float]] = deque()  # when each is, and when it was taken
        self._waiting = 0
        self._most = 0

    @contextmanager
    def waiting(self) -> Iterator[Self]:
        """One more request waits."""
        self._waiting += 1
        self._most = max(self._most, self._waiting)
        try:
            yield self
        finally:
            self._waiting -= 1

    def demand(self) -> int:
        """The most that waited at once since this was asked last: while it waits, as many come again."""
        most, self._most = self._most, self._waiting
        return most

    def next(self, now: float, *, since: float) -> tuple[float, float] | None:
        """The next one that is still to come, and was taken ``since`` the last pause."""
        while self.places:
            at, taken_at = self.places.popleft()
            if at > now and taken_at > since:
                return at, taken_at
        return None


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
        self._line: ListeningConnection | None = None
        self._queue: psycopg.AsyncConnection | None = None  # where a backfill stands for a place
        (self._in_turn,) = lock_keys(purpose="request place", exchange=name)
        self._opened = AsyncExitStack()
        self._turn = asyncio.Lock()  # requests of one run take places in the order they came
        self._rows: dict[float, _Row] = defaultdict(_Row)  # by the cost of a request
        self._stopping = asyncio.Lock()
        self._stopped_at = -math.inf  # when this run last heard of a refusal
        self._first = live  # the next request is a minute run's first
        self._noted = PaceCounts()  # what the database knows of the counts

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            self._line = await ListeningConnection.open(
                self._url, channel=_CHANNEL, heard=self._heard, application_name=_APPLICATION
            )
            opened.push_async_callback(self._line.close)
            # A crash of the server loses a few places; a flush for each is a disk's speed.
            await self._say(_NO_FLUSH)
            await self._say(_MAKE)
            if not self._live:
                # It waits in line inside a statement: what is urgent must not wait behind it.
                self._queue = await open_async_connection(self._url, application_name=_APPLICATION)
                opened.push_async_callback(self._queue.close)
                with database_errors(self._line.target, self._doing("set up")):
                    await self._queue.execute(_NO_FLUSH)
                    await self._queue.execute("SET lock_timeout = 0")  # the line may be long
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What ended the run says more than that the last figures could not be noted.
        lenient = suppress(DatabaseError) if kind is not None else nullcontext()
        async with self._opened:
            with lenient:
                await self._say(_NOTE, **self._to_note())

    async def acquire(self, cost_ms: float) -> None:
        """See :class:`crypto_pipeline.core.pacing.Pacer`."""
        began = _now()
        tolerance, may_go = self._tolerance, False
        while not may_go:
            with self._rows[cost_ms].waiting() as row:
                async with self._turn:
                    found = row.next(_now(), since=self._stopped_at)
                    place, taken_at = found or await self._new_row(row, cost_ms)
            await asyncio.sleep(place - _now())
            if self._listening().lost:  # a pause would not be heard
                await self._say(_MAKE)
            may_go = _now() < place + tolerance and self._stopped_at < taken_at
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
        self._stopped_at = math.inf  # until the database knows of it, nothing of ours goes out
        asked = {
            "pause": _FIRST_PAUSE_SECONDS if pause is None else pause,
            "named": pause or 0.0,
            "longest": max(_LONGEST_PAUSE_SECONDS, pause or 0.0),
            "forgiven": _FORGIVEN_AFTER_SECONDS,
            "banned": banned,
            "denied": denied,
        }
        async with self._stopping:
            try:
                if not (await self._say(_BLOCK, **asked)).rowcount:  # somebody emptied the table
                    await self._say(_MAKE)
                    await self._say(_BLOCK, **asked)
                await self._say(_TELL)
            finally:
                self._stopped_at = _now()

    def _heard(self, name: str) -> None:
        if name == self._name:
            self._stopped_at = max(self._stopped_at, _now())

    async def _new_row(self, row: _Row, cost_ms: float) -> tuple[float, float]:
        """Take a place and, if more will be needed, a few after it; when it is, and was taken."""
        cost = cost_ms / self._share
        close = 0 < cost < _CLOSE_MS
        wanted = min(row.demand(), int(_IN_A_ROW_MS / cost)) if close else 1
        place, taken_at = await self._place(cost, wanted)
        row.places.extend((place + n * cost / 1_000, taken_at) for n in range(1, wanted))
        return place, taken_at

    async def _place(self, cost_ms: float, wanted: int) -> tuple[float, float]:
        """Take places in a row, waiting until there are; when the first is, and when it was taken.

        Both by the event loop's clock. Between the two the exchange may have asked for a pause.
        """
        while True:
            asked_at = _now()
            place, blocked, reason, queued = await self._take(cost_ms, wanted)
            if place is not None:
                dear = cost_ms > LIVE_PATIENCE_MS and self._first
                self._first = False
                wait = min(place, LIVE_PATIENCE_MS / 1_000) if dear else place
                return _now() + wait, asked_at + queued
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

    async def _take(self, cost_ms: float, wanted: int) -> tuple[float | None, float, str, float]:
        """Seconds to the place, or None and for how many the exchange is to be left alone, and why.

        Also how many of them it took, for those before in the line.
        """
        counts = replace(self.counts)
        request = {
            "cost": cost_ms * wanted,
            "ahead": LIVE_AHEAD_MS if self._live else _ahead_ms(cost_ms),
            "turn": None if self._live else self._in_turn,
            **self._to_note(),
        }
        for _ in range(3):
            found = await (await self._ask(_TAKE, **request)).fetchone()
            place, blocked, reason, queued = found or (None,) * 4
            if place is not None:
                self._noted = counts
            if place is not None or blocked is not None:
                return place, blocked or 0.0, reason or "", queued
            await self._say(_MAKE)  # somebody emptied the table
        raise DatabaseError(
            f"The request budget {self._name!r} is emptied all the time.",
            hint="see which program deletes from request_budgets (pg_stat_activity), and stop it.",
        )

    async def _ask(
        self, statement: sql.SQL | sql.Composed, **parameters: Any
    ) -> psycopg.AsyncCursor:
        """For a place: where the run stands in line, if it does."""
        if self._queue is None:
            return await self._say(statement, **parameters)
        with database_errors(self._listening().target, self._doing("take a place in")):
            return await self._queue.execute(statement, {"name": self._name, **parameters})

    async def _say(
        self, statement: sql.SQL | sql.Composed, **parameters: Any
    ) -> psycopg.AsyncCursor:
        return await self._listening().execute(
            statement, {"name": self._name, **parameters}, doing=self._doing("use")
        )

    def _doing(self, what: str) -> str:
        return f"{what} the request budget {self._name!r}"

    def _listening(self) -> ListeningConnection:
        if self._line is None:
            raise AssertionError("the budget is used outside its context")
        return self._line

    def _to_note(self) -> dict[str, float]:
        """What the database does not know of yet: it is told with the next place."""
        return {
            "went": self.counts.requests - self._noted.requests,
            "waited": self.counts.waited_seconds - self._noted.waited_seconds,
        }


def _ahead_ms(cost_ms: float) -> float:
    """How far ahead a backfill may take a place: one of them, and what a busy machine is late."""
    return min(BACKFILL_AHEAD_MS, 60.0 + cost_ms)


def _now() -> float:
    return asyncio.get_running_loop().time()
