"""A long run history out of a short real one: genuine rows, copied with new ids and times.

What Dagster itself wrote of some runs is the template. Each copy is moved to another minute: run
ids, ids of rows and what points at them, the partition's day and every time in the stored JSON.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

#: Parents before children: run_tags refers to runs.
TABLES = ["runs", "run_tags", "event_logs", "asset_event_tags", "asset_check_executions"]
_EVENT_IDS = {"event_id", "evaluation_event_storage_id", "materialization_event_storage_id"}
_EPOCH = re.compile(r"(?<![\w.])(1[6-9]\d{8}\.\d+)")
_STORAGE_ID = re.compile(r'(?<="storage_id": )(\d+)')

Value = Callable[["Copy"], Any]


@dataclass(frozen=True)
class Copy:
    """Where one copy goes: how far its times and ids move, its day, its run ids."""

    shift: timedelta
    day: str
    clock: str
    ids: dict[str, int]
    runs: dict[str, str]


@dataclass(frozen=True)
class Rows:
    """One table's rows of the template, each column a function of the copy."""

    table: str
    columns: list[str]
    rows: list[list[Value]]
    span: int
    first: int


class Template:
    """Runs that really happened in one minute, read from Dagster's tables."""

    def __init__(self, conn: psycopg.Connection, runs: Sequence[str]) -> None:
        self._conn = conn
        self._runs = list(runs)
        ((partition, created),) = conn.execute(
            "SELECT value, create_timestamp FROM runs JOIN run_tags USING (run_id)"
            " WHERE run_id = %s AND key = 'dagster/partition/date'",
            [self._runs[0]],
        ).fetchall()
        self._day, self._minute = partition, created.replace(second=0, microsecond=0, tzinfo=UTC)
        self._offsets = {
            table: conn.execute(
                sql.SQL("SELECT max(id) + 1 FROM {}").format(sql.Identifier(table))
            ).fetchone()[0]
            for table in TABLES
        }
        self._tables = [self._read(table) for table in TABLES]
        self._written = 0

    def write(self, minutes: Iterable[datetime]) -> int:
        """Copy the template into each minute, oldest first; how many runs that made."""
        copies = [self._copy(minute) for minute in minutes]
        for rows in self._tables:
            with (
                self._conn.cursor() as cursor,
                cursor.copy(
                    sql.SQL("COPY {} ({}) FROM STDIN").format(
                        sql.Identifier(rows.table),
                        sql.SQL(", ").join(map(sql.Identifier, rows.columns)),
                    )
                ) as sink,
            ):
                for copy in copies:
                    for row in rows.rows:
                        sink.write_row([value(copy) for value in row])
            self._conn.execute(
                "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)",
                [rows.table, self._offsets[rows.table] + self._written * rows.span],
            )
        return len(copies) * len(self._runs)

    def _copy(self, minute: datetime) -> Copy:
        copy = Copy(
            shift=minute - self._minute,
            day=minute.date().isoformat(),
            clock=f"{minute:T%H:%M}",
            ids={
                rows.table: self._offsets[rows.table] + self._written * rows.span - rows.first
                for rows in self._tables
            },
            runs={run: str(uuid.uuid4()) for run in self._runs},
        )
        self._written += 1
        return copy

    def _read(self, table: str) -> Rows:
        by_run = sql.SQL("SELECT * FROM {} WHERE run_id = ANY(%s) ORDER BY id")
        if table == "asset_event_tags":
            by_run = sql.SQL(
                "SELECT {0}.* FROM {0} JOIN event_logs e ON e.id = event_id"
                " WHERE e.run_id = ANY(%s) ORDER BY {0}.id"
            )
        cursor = self._conn.execute(by_run.format(sql.Identifier(table)), [self._runs])
        columns = [column.name for column in cursor.description or ()]
        found = cursor.fetchall()
        ids = [row[columns.index("id")] for row in found]
        return Rows(
            table=table,
            columns=columns,
            rows=[
                [self._value(table, name, v) for name, v in zip(columns, row, strict=True)]
                for row in found
            ],
            span=max(ids) - min(ids) + 1,
            first=min(ids),
        )

    def _value(self, table: str, column: str, value: Any) -> Value:
        """What stands in a copy where the template has this value."""
        shift: Value | None = None
        if column == "id":
            shift = lambda copy: value + copy.ids[table]  # noqa: E731
        elif column in _EVENT_IDS and value is not None:
            shift = lambda copy: value + copy.ids["event_logs"]  # noqa: E731
        elif column in {"start_time", "end_time"} and value is not None:
            shift = lambda copy: value + copy.shift.total_seconds()  # noqa: E731
        elif isinstance(value, datetime):
            shift = lambda copy: value + copy.shift  # noqa: E731
        elif isinstance(value, str):
            parts = list(self._parts(value))
            if len(parts) > 1:
                shift = lambda copy: "".join(p if isinstance(p, str) else p(copy) for p in parts)  # noqa: E731
        return shift or (lambda copy: value)

    def _parts(self, text: str) -> Iterator[str | Callable[[Copy], str]]:
        """The text in pieces: those that stay, and those that move with the copy."""
        moving = "|".join(
            [*(re.escape(run) for run in self._runs), re.escape(self._day),
             re.escape(f"{self._minute:T%H:%M}"), _EPOCH.pattern, _STORAGE_ID.pattern]
        )  # fmt: skip
        end = 0
        for match in re.finditer(moving, text):
            yield text[end : match.start()]
            yield self._moved(match)
            end = match.end()
        yield text[end:]

    def _moved(self, match: re.Match[str]) -> Callable[[Copy], str]:
        found = match.group()
        if found in self._runs:
            return lambda copy: copy.runs[found]
        if found == self._day:
            return lambda copy: copy.day
        if match.group(1):
            return lambda copy: f"{float(found) + copy.shift.total_seconds():.6f}"
        if match.group(2):
            return lambda copy: str(int(found) + copy.ids["event_logs"])
        return lambda copy: copy.clock


def copy_database(admin: psycopg.Connection, source: str, target: str) -> None:
    """Make ``target`` a copy of ``source``, whose sessions are ended."""
    one, other = sql.Identifier(source), sql.Identifier(target)
    # TimescaleDB's scheduler connects to every database, and a template must be left alone.
    admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(one))
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    deadline = time.monotonic() + 20
    while admin.execute(ended, [source]).fetchall() and time.monotonic() < deadline:
        time.sleep(0.05)
    admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(other, one))
    admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(one))


def minutes(start: datetime, end: datetime) -> list[datetime]:
    """Every minute of ``[start, end)``."""
    count = int((end - start) / timedelta(minutes=1))
    return [start + timedelta(minutes=n) for n in range(count)]
