"""Dagster's storage in PostgreSQL, over connections that are kept.

``dagster-postgres`` opens a connection for each statement group: two or three an event, each a login
and a server process, which was half of a backfill's time and most of the database's. Here a process
keeps a few, and looks whether one still lives before it uses it: a server that was restarted in
between is no error. ``dagster.yaml`` names this class.

It also stores the check results of a step a hundred at a time: Dagster takes four statements for each.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

# Not exported by dagster; pinned by the tests of this module.
from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.asset_check_execution_record import (  # noqa: TID251
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.event_log.schema import (  # noqa: TID251
    AssetCheckExecutionsTable,
    SqlEventLogStorageTable,
)
from dagster._serdes import serialize_value
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
)
from dagster_postgres.utils import pg_url_from_config, retry_pg_connection_fn
from sqlalchemy import Connection, cast, column, create_engine, inspect, values
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

#: Check results that are stored with one statement, at most.
_TOGETHER: Final = 100

_RESULT_KEY: Final = ("asset_key", "check_name", "run_id", "partition")
_RESULT: Final = [
    column(name, AssetCheckExecutionsTable.c[name].type)
    for name in (
        *_RESULT_KEY,
        "execution_status",
        "evaluation_event",
        "evaluation_event_timestamp",
        "evaluation_event_storage_id",
        "materialization_event_storage_id",
    )
]

#: A table of each part of the storage: what they look for before they make theirs.
_NEEDED: Final = {"event_logs", "runs", "instance_info", "jobs"}


class PooledPostgresStorage(DagsterPostgresStorage):
    """As its base; configured alike (``postgres_url`` …)."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,  # noqa: FBT001, FBT002 - its base's signature
        inst_data: Any = None,
    ) -> None:
        engine = create_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=5,
            max_overflow=-1,  # as without a pool: never refused
            pool_pre_ping=True,
        )
        if should_autocreate_tables:  # each of the parts would look for itself
            there = retry_pg_connection_fn(lambda: inspect(engine).get_table_names())
            should_autocreate_tables = not _NEEDED.issubset(there)
        super().__init__(postgres_url, should_autocreate_tables, inst_data)
        self._event_log_storage = _EventLogStorage(postgres_url, should_autocreate_tables)
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001 - pinned by the tests of this module

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Mapping[str, Any]) -> Self:
        """What Dagster makes of ``dagster.yaml``."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
        )


class _EventLogStorage(PostgresEventLogStorage):
    """Stores the results of checks together, before whatever event comes next."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._seen: set[str] = set()
        self._results: dict[tuple[str, ...], EventLogEntry] = {}
        self._storing = threading.Lock()
        super().__init__(*arguments, **named)

    def store_event(self, event: EventLogEntry) -> None:
        """As its base; a partition's check result waits for the others, or for another event.

        A step's results are followed by the step's end, so none waits for long, and a process that
        dies between has not said its step is done.
        """
        key = _result_key(event)
        with self._storing:
            if key is None or key in self._results or len(self._results) >= _TOGETHER:
                self._store_results()
            if key is not None:
                self._results[key] = event
        if key is None:
            super().store_event(event)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """As its base."""
        with self._storing:
            self._store_results()
        super().store_event_batch(events)

    def _store_results(self) -> None:
        """Those that wait, all or none. They wait on while the database is away.

        What it refuses is stored as Dagster does, one by one, and told once, like any event's refusal.
        """
        if not self._results:
            return
        try:
            with self._engine.connect() as plain:
                conn = plain.execution_options(isolation_level="READ COMMITTED")
                with conn.begin():
                    self._insert_results(conn, list(self._results.values()))
        except (OperationalError, InterfaceError):
            raise
        except DBAPIError:
            self._store_one_by_one()
        self._results.clear()

    def _store_one_by_one(self) -> None:
        refused: DBAPIError | None = None
        for key, event in list(self._results.items()):
            try:
                super().store_event(event)
            except (OperationalError, InterfaceError):
                raise
            except DBAPIError as error:
                refused = error
            del self._results[key]
        if refused is not None:
            raise refused

    def _insert_results(self, conn: Connection, events: Sequence[EventLogEntry]) -> None:
        inserted = conn.execute(
            self.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
        )
        rows = [
            self._result_row(event, int(row[0]))
            for event, row in zip(events, inserted, strict=True)
        ]
        given = values(*_RESULT, name="given").data([tuple(row.values()) for row in rows])
        planned = AssetCheckExecutionsTable
        updated = conn.execute(
            planned.update()
            .where(*(planned.c[name] == given.c[name] for name in _RESULT_KEY))
            .values({c.name: cast(given.c[c.name], c.type) for c in _RESULT[len(_RESULT_KEY) :]})
            .returning(*(planned.c[name] for name in _RESULT_KEY))
        )
        there = {tuple(row) for row in updated}
        unplanned = [row for row in rows if tuple(row[n] for n in _RESULT_KEY) not in there]
        if unplanned:
            conn.execute(planned.insert().values(unplanned))

    def _result_row(self, event: EventLogEntry, event_id: int) -> dict[str, Any]:
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
            "evaluation_event": serialize_value(event),
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
            "materialization_event_storage_id": target.storage_id if target else None,
        }

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; one that was seen stays."""
        if table_name not in self._seen and super().has_table(table_name):
            self._seen.add(table_name)
        return table_name in self._seen


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
