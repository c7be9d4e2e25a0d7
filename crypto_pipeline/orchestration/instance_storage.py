"""Dagster's storage in PostgreSQL, over connections that are kept.

``dagster-postgres`` opens a connection for each statement group: two or three an event, each a login
and a server process, which was half of a backfill's time and most of the database's. Here a process
keeps a few, and looks whether one still lives before it uses it: a server that was restarted in
between is no error. ``dagster.yaml`` names this class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
)
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import create_engine


class PooledPostgresStorage(DagsterPostgresStorage):
    """As its base; configured alike (``postgres_url`` …)."""

    def __init__(self, postgres_url: str, *arguments: Any, **named: Any) -> None:
        super().__init__(postgres_url, *arguments, **named)
        self._event_log_storage = _EventLogStorage(
            postgres_url, should_autocreate_tables=self.should_autocreate_tables
        )
        engine = create_engine(
            postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=5,
            max_overflow=-1,  # as without a pool: never refused
            pool_pre_ping=True,
        )
        for storage in (self._event_log_storage, self._run_storage, self._schedule_storage):
            storage._engine = engine  # noqa: SLF001 - pinned in test_upstream_pins.py

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
