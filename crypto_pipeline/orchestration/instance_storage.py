"""Dagster's storage in PostgreSQL, over connections that are kept.

``dagster-postgres`` opens a connection for each statement group: two or three an event, each a login
and a server process, which was half of a backfill's time and most of the database's. Here a process
keeps a few, and looks whether one still lives before it uses it: a server that was restarted in
between is no error. ``dagster.yaml`` names this class; events are stored by :mod:`.event_storage`.

Before most of its statements Dagster also asks which tables and columns there are, for databases that
were not migrated yet. What is there stays there, so each is asked about until it was seen once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from select import POLLIN
from select import poll as polling
from typing import Any, Final, Self

from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import pg_url_from_config, retry_pg_connection_fn
from sqlalchemy import Engine, and_, column, create_engine, event, func, select, table
from sqlalchemy.exc import InvalidatePoolError

from crypto_pipeline.orchestration.event_storage import EventLogStorage

#: A table of each part of the storage: what they look for before they make theirs.
_NEEDED: Final = ("event_logs", "runs", "instance_info", "jobs")
_ALL_THERE: Final = select(and_(*(func.to_regclass(name).is_not(None) for name in _NEEDED)))

#: Columns of the table of runs, by PostgreSQL's catalog.
_HAS_RUN_STATS: Final = (
    select(func.count() == 2)
    .where(
        column("attrelid") == func.to_regclass("runs"),
        column("attname").in_(["start_time", "end_time"]),
    )
    .select_from(table("pg_attribute"))
)

#: What says nothing and was used just now is alive; a network in between may have forgotten the rest.
_TRUSTED_SECONDS: Final = 5.0
_USED: Final = "used_at"


class PooledPostgresStorage(DagsterPostgresStorage):
    """As its base; configured alike (``postgres_url`` …)."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,  # noqa: FBT001, FBT002 - its base's signature
        inst_data: Any = None,
    ) -> None:
        engine = _pooled_engine(postgres_url)
        if should_autocreate_tables:  # each of the parts would look for itself
            should_autocreate_tables = not retry_pg_connection_fn(lambda: _all_there(engine))
        super().__init__(postgres_url, False, inst_data)  # noqa: FBT003 - its parts are ours
        self._event_log_storage = EventLogStorage(postgres_url, should_autocreate_tables)
        self._run_storage = _RunStorage(postgres_url, should_autocreate_tables)
        self._schedule_storage = _ScheduleStorage(postgres_url, should_autocreate_tables)
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


def _once_seen(look: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A look at the schema that is not taken again once it said yes."""

    @wraps(look)
    def seen(storage: Any) -> bool:
        known: set[str] = storage.__dict__.setdefault("_once_seen", set())
        if look.__name__ not in known and look(storage):
            known.add(look.__name__)
        return look.__name__ in known

    return seen


class _RunStorage(PostgresRunStorage):
    @_once_seen
    def has_run_stats_index_cols(self) -> bool:
        """As its base, by one statement: SQLAlchemy's reflection takes 15 ms, in each new process."""
        with self.connect() as conn:
            return bool(conn.execute(_HAS_RUN_STATS).scalar_one())

    has_backfill_id_column = _once_seen(PostgresRunStorage.has_backfill_id_column)


class _ScheduleStorage(PostgresScheduleStorage):
    has_instigators_table = _once_seen(PostgresScheduleStorage.has_instigators_table)
    has_secondary_index_table = _once_seen(PostgresScheduleStorage.has_secondary_index_table)


def _pooled_engine(url: str) -> Engine:
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=5,
        max_overflow=-1,  # as without a pool: never refused
        use_native_hstore=False,  # asked for at each first connection, and nothing here has one
    )

    def put_back(connection: Any, record: Any) -> None:
        record.info[_USED] = time.time()  # goes on while the machine sleeps

    def look(connection: Any, record: Any, taken: Any) -> None:
        """As ``pool_pre_ping``, which asks each time: that was two fifths of a small statement."""
        idle = time.time() - record.info.get(_USED, float("-inf"))
        if 0 <= idle < _TRUSTED_SECONDS and not _has_something_to_say(connection):
            return
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError from error  # makes the pool connect anew

    event.listen(engine, "checkin", put_back)
    event.listen(engine, "checkout", look)
    return engine


def _all_there(engine: Engine) -> bool:
    with engine.connect() as conn:
        return bool(conn.execute(_ALL_THERE).scalar_one())


def _has_something_to_say(connection: Any) -> bool:
    """Whether an idle connection can be read from: the server's farewell, or that it is gone."""
    if connection.closed:
        return True
    poll = polling()
    poll.register(connection.fileno(), POLLIN)
    return bool(poll.poll(0))
