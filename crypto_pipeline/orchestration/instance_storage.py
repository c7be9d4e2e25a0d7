"""Dagster's storage in PostgreSQL, over connections that are kept.

``dagster-postgres`` opens a connection for each statement group: two or three an event, each a login
and a server process, which was half of a backfill's time and most of the database's. Here a process
keeps a few, and looks whether one still lives before it uses it: a server that was restarted in
between is no error. ``dagster.yaml`` names this class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
)
from dagster_postgres.utils import pg_url_from_config, retry_pg_connection_fn
from sqlalchemy import create_engine, inspect

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
    """Which does not ask for each check result whether the table of check results is there."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._seen: set[str] = set()
        super().__init__(*arguments, **named)

    def has_table(self, table_name: str) -> bool:
        """Whether there is such a table; one that was seen stays."""
        if table_name not in self._seen and super().has_table(table_name):
            self._seen.add(table_name)
        return table_name in self._seen
