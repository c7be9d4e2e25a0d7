"""A connection that hears notifications between its statements, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from psycopg import sql

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.listening import ListeningConnection
from crypto_pipeline.errors import DatabaseError

PID = sql.SQL("SELECT pg_backend_pid()")


@pytest.fixture(scope="module")
def url(new_database: Callable[[], str]) -> str:
    return new_database()


def listening(
    url: str, use: Callable[[ListeningConnection, list[str]], Coroutine[Any, Any, None]]
) -> list[str]:
    async def inside() -> list[str]:
        heard: list[str] = []
        line = await ListeningConnection.open(
            url, channel="a channel", heard=heard.append, application_name="test"
        )
        try:
            await use(line, heard)
        finally:
            await line.close()
        return heard

    return asyncio.run(inside())


def notify(url: str, payload: str) -> None:
    with connect(url) as conn:
        conn.execute("SELECT pg_notify('a channel', %s)", [payload])


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - what it waits for comes from elsewhere
            await asyncio.sleep(0.005)


def test_it_hears_while_nobody_uses_it_and_between_statements(url: str) -> None:
    """Psycopg takes the socket for each statement: after one, nothing was heard any more."""

    async def use(line: ListeningConnection, heard: list[str]) -> None:
        for number in range(3):
            notify(url, f"idle {number}")
            await until(lambda number=number: len(heard) == number + 1)
            await line.execute(sql.SQL("SELECT 1"), doing="ask")

    assert listening(url, use) == ["idle 0", "idle 1", "idle 2"]


def test_what_comes_during_a_statement_is_heard_with_its_answer(url: str) -> None:
    async def use(line: ListeningConnection, heard: list[str]) -> None:
        asking = asyncio.create_task(line.execute(sql.SQL("SELECT pg_sleep(0.3)"), doing="sleep"))
        await asyncio.sleep(0.1)
        notify(url, "busy")
        await asking
        await until(lambda: heard == ["busy"])

    assert listening(url, use) == ["busy"]


def test_statements_of_several_tasks_take_turns(url: str) -> None:
    """One's end took the socket from the next one's waiting, which then waited for ever."""

    async def use(line: ListeningConnection, heard: list[str]) -> None:
        async def ask(number: int) -> None:
            statement = sql.SQL("SELECT {}::int, pg_sleep(0.01)").format(number)
            cursor = await line.execute(statement, doing="ask")
            assert (await cursor.fetchone() or ())[0] == number

        async with asyncio.timeout(10):
            await asyncio.gather(*map(ask, range(20)))

    assert listening(url, use) == []


def test_an_end_of_the_connection_is_noticed_and_said(url: str) -> None:
    """A pause would not be heard: nobody may take silence for "go on"."""

    async def use(line: ListeningConnection, heard: list[str]) -> None:
        (pid,) = await (await line.execute(PID, doing="ask")).fetchone() or (0,)
        with connect(url) as conn:
            conn.execute("SELECT pg_terminate_backend(%s)", [pid])
        await until(lambda: line.lost)
        with pytest.raises(DatabaseError, match="Could not ask in database"):
            await line.execute(PID, doing="ask")

    assert listening(url, use) == []


def test_a_channel_and_a_database_that_are_not_there(url: str) -> None:
    async def nowhere() -> None:
        await ListeningConnection.open(
            url.rsplit("/", 1)[0] + "/nowhere", channel="c", heard=print, application_name="test"
        )

    with pytest.raises(DatabaseError, match="does not exist"):
        asyncio.run(nowhere())
