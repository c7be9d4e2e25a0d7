"""Dagster's event log in PostgreSQL, stored with fewer statements.

Stored together what Dagster stores one by one: the check results of a step, four statements each, and
what a run intends, three or four for each partition of each asset; and materializations by statements
that are made ready once, not for each number of partitions. Connections are those of
:mod:`.instance_storage`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Any, Final, NamedTuple

# Not exported by dagster; pinned by the tests of instance_storage.
from dagster import AssetKey, DagsterEventType, EventLogEntry
from dagster._core.storage.asset_check_execution_record import (  # noqa: TID251
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.event_log.schema import (  # noqa: TID251
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    AssetKeyTable,
    SqlEventLogStorageTable,
)
from dagster_postgres import PostgresEventLogStorage
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import (
    ARRAY,
    Connection,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

#: Check results that are stored with one statement, at most.
_TOGETHER: Final = 100

_RESULT_KEY: Final = ("asset_key", "check_name", "run_id", "partition")
_FOUND: Final = (
    "execution_status",
    "evaluation_event",
    "evaluation_event_timestamp",
    "evaluation_event_storage_id",
    "materialization_event_storage_id",
)
_RESULT: Final = (*_RESULT_KEY, *_FOUND)

_EXECUTIONS: Final = AssetCheckExecutionsTable
_GIVEN: Final = (
    func.unnest(
        *(cast(bindparam(f"all_{name}"), ARRAY(_EXECUTIONS.c[name].type)) for name in _RESULT)
    )
    .table_valued(*(column(name, _EXECUTIONS.c[name].type) for name in _RESULT))
    .render_derived(name="given")
)
_SET_RESULTS: Final = (
    _EXECUTIONS.update()
    .where(*(_EXECUTIONS.c[name] == _GIVEN.c[name] for name in _RESULT_KEY))
    .values({name: _GIVEN.c[name] for name in _FOUND})
    .returning(*(_EXECUTIONS.c[name] for name in _RESULT_KEY))
)
_EVENTS: Final = SqlEventLogStorageTable
_WIPED: Final = (
    select(AssetKeyTable.c.wipe_timestamp)
    .where(AssetKeyTable.c.asset_key == bindparam("asset"))
    .scalar_subquery()
)
_NEWEST: Final = (
    select(_EVENTS.c.partition, _EVENTS.c.id, _EVENTS.c.run_id, _EVENTS.c.timestamp)
    .distinct(_EVENTS.c.partition)
    .where(
        _EVENTS.c.asset_key == bindparam("asset"),
        _EVENTS.c.dagster_event_type == DagsterEventType.ASSET_MATERIALIZATION.value,
        _EVENTS.c.timestamp > func.coalesce(_WIPED, literal_column("'-infinity'::timestamp")),
        _EVENTS.c.partition == any_(cast(bindparam("partitions"), ARRAY(_EVENTS.c.partition.type))),
    )
    .order_by(_EVENTS.c.partition, _EVENTS.c.id.desc())
)
_INSERT_EVENTS: Final = SqlEventLogStorageTable.insert().returning(
    SqlEventLogStorageTable.c.id, sort_by_parameter_order=True
)

#: An event, its id, and as it was written.
_Inserted = tuple[EventLogEntry, int, str]

_PLANNED: Final = {
    DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
}


class NewestMaterialization(NamedTuple):
    """A partition's newest materialization: its event's id, its run, and when (seconds)."""

    storage_id: int
    run_id: str
    timestamp: float


class EventLogStorage(PostgresEventLogStorage):
    """Stores the results of checks together, before whatever event comes next."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._seen: set[str] = set()  # tables and columns
        self._results: dict[tuple[str, ...], EventLogEntry] = {}
        self._storing = threading.Lock()
        super().__init__(*arguments, **named)

    def store_event(self, event: EventLogEntry) -> None:
        """As its base; a partition's check result waits for the others, or for another event.

        A step's results are followed by the step's end, so none waits for long, and a process that
        dies between has not said its step is done.
        """
        key = _result_key(event)
        refused: DBAPIError | None = None
        with self._storing:
            if key is None or key in self._results or len(self._results) >= _TOGETHER:
                try:
                    self._store_results()
                except DBAPIError as error:
                    if _away(error):
                        raise
                    refused = error
            if key is not None:
                self._results[key] = event
        if key is None:
            super().store_event(event)
        if refused is not None:
            raise refused  # of a result before; this event is stored all the same

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """As its base; what a run intends all or none, with a few statements.

        Whatever fails, Dagster tries again one by one.
        """
        with self._storing:
            self._store_results()
        types = {event.get_dagster_event().event_type for event in events}
        if events and types <= _PLANNED:
            with self._transaction() as conn:
                self._insert_planned(conn, events)
        elif types == {DagsterEventType.ASSET_MATERIALIZATION}:
            self.has_table(AssetEventTagsTable.name)  # within, it would take another connection
            self._insert_materializations(events)
        else:
            super().store_event_batch(events)

    def _insert_materializations(self, events: Sequence[EventLogEntry]) -> None:
        """As its base, with statements that do not grow with the events.

        These are there at once: who reads the log by its ids must not come past them.
        """
        with self._transaction() as conn:  # of many, SQLAlchemy makes several statements
            inserted = self._insert_events(conn, events)
        with self._transaction() as conn:
            self._store_asset_event_tags(conn, events, [event_id for _, event_id, _ in inserted])
            self._store_newest(conn, inserted)

    def _insert_planned(self, conn: Connection, events: Sequence[EventLogEntry]) -> None:
        inserted = self._insert_events(conn, events)
        self._store_newest(conn, inserted)
        checks = [
            row
            for event, event_id, written in inserted
            if event.get_dagster_event().asset_key is None
            for row in self._planned_rows(event, event_id, written)
        ]
        if checks:
            conn.execute(_EXECUTIONS.insert(), checks)

    def _store_newest(self, conn: Connection, inserted: Sequence[_Inserted]) -> None:
        """The newest event of each asset, in Dagster's order, so that none wait in a circle."""
        newest: dict[str, _Inserted] = {}
        for each in inserted:
            asset = each[0].get_dagster_event().asset_key
            if asset is not None:
                newest[asset.to_string()] = each
        for event, event_id, _ in newest.values():
            self._store_asset_event(conn, event, event_id)

    def _planned_rows(
        self, event: EventLogEntry, event_id: int, written: str
    ) -> list[dict[str, Any]]:
        planned = event.get_dagster_event().asset_check_planned_data
        subset = planned.partitions_subset
        row = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": written,
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
        }
        keys = [None] if subset is None else subset.get_partition_keys()
        return [{**row, "partition": key} for key in keys]

    def _insert_events(self, conn: Connection, events: Sequence[EventLogEntry]) -> list[_Inserted]:
        rows = [self._event_to_row(event) for event in events]
        ids = [int(event_id) for (event_id,) in conn.execute(_INSERT_EVENTS, rows)]
        return list(zip(events, ids, (row["event"] for row in rows), strict=True))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """The pool's connections are in autocommit."""
        with self._engine.connect() as plain:
            conn = plain.execution_options(isolation_level="READ COMMITTED")
            with conn.begin():
                yield conn

    def _store_results(self) -> None:
        """Those that wait, all or none. They wait on while the database is away.

        What it refuses is stored as Dagster does, one by one, and told once, like any event's refusal.
        """
        if not self._results:
            return
        try:
            with self._transaction() as conn:
                self._insert_results(conn, list(self._results.values()))
        except DBAPIError as error:
            if _away(error):
                raise
            self._store_one_by_one()
        self._results.clear()

    def _store_one_by_one(self) -> None:
        refused: DBAPIError | None = None
        for key, event in list(self._results.items()):
            try:
                super().store_event(event)
            except DBAPIError as error:
                if _away(error):
                    raise
                refused = error
            del self._results[key]
        if refused is not None:
            raise refused

    def _insert_results(self, conn: Connection, events: Sequence[EventLogEntry]) -> None:
        rows = [self._result_row(*inserted) for inserted in self._insert_events(conn, events)]
        given = {f"all_{name}": [row[name] for row in rows] for name in _RESULT}
        there = {tuple(row) for row in conn.execute(_SET_RESULTS, given)}
        unplanned = [row for row in rows if tuple(row[n] for n in _RESULT_KEY) not in there]
        if unplanned:
            conn.execute(_EXECUTIONS.insert(), unplanned)

    def _result_row(self, event: EventLogEntry, event_id: int, written: str) -> dict[str, Any]:
        evaluation = event.get_dagster_event().asset_check_evaluation_data
        target = evaluation.target_materialization_data
        status = (
            AssetCheckExecutionRecordStatus.SUCCEEDED
            if evaluation.passed
            else AssetCheckExecutionRecordStatus.FAILED
        )
        return {
            "asset_key": evaluation.asset_key.to_string(),
            "check_name": evaluation.check_name,
            "run_id": event.run_id,
            "partition": evaluation.partition,
            "execution_status": status.value,
            "evaluation_event": written,
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
            "materialization_event_storage_id": target.storage_id if target else None,
        }

    def newest_materializations(
        self, asset: AssetKey, partitions: Sequence[str]
    ) -> dict[str, NewestMaterialization]:
        """Of each partition that has one; by columns, without reading the events back."""
        given = {"asset": asset.to_string(), "partitions": list(partitions)}
        with self.index_connection() as conn:
            rows = conn.execute(_NEWEST, given).all()
        return {
            partition: NewestMaterialization(event_id, run_id, at.replace(tzinfo=UTC).timestamp())
            for partition, event_id, run_id, at in rows
        }

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; one that was seen stays."""
        if table_name not in self._seen and super().has_table(table_name):
            self._seen.add(table_name)
        return table_name in self._seen

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        known = f"asset_keys.{column_name}"
        if known not in self._seen and super()._has_asset_key_col_on_connection(conn, column_name):
            self._seen.add(known)
        return known in self._seen


def _away(error: DBAPIError) -> bool:
    """Whether the database is, or takes nothing for now, rather than refuse this one event."""
    read_only = getattr(error.orig, "pgcode", None) == ReadOnlySqlTransaction.sqlstate
    return read_only or isinstance(error, OperationalError | InterfaceError)


def _result_key(event: EventLogEntry) -> tuple[str, ...] | None:
    """Of a check's result for one partition in a run; None for any other event."""
    found = event.dagster_event
    if found is None or found.event_type != DagsterEventType.ASSET_CHECK_EVALUATION:
        return None
    evaluation = found.asset_check_evaluation_data
    if not event.run_id or evaluation.partition is None:
        return None
    return (
        evaluation.asset_key.to_string(),
        evaluation.check_name,
        event.run_id,
        evaluation.partition,
    )
