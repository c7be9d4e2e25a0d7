"""What Dagster's storage remembers of runs, and how it is made to forget.

``DagsterInstance.delete_run`` is not enough: it deletes the run before its events and outside a
transaction, so that a crash leaves events nobody finds again; it leaves the check results; and it
knows nothing of the partitions whose state its events hold. So this works on Dagster's own tables
(by its own metadata, pinned in ``test_upstream_pins_history.py``), a batch of runs a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final, TypeVar

import dagster as dg
import sqlalchemy as sa
import sqlalchemy.exc

# The tables have no public name; test_upstream_pins_history.py pins them.
from dagster._core.storage.event_log import schema as event_tables  # noqa: TID251
from dagster._core.storage.runs import schema as run_tables  # noqa: TID251
from dagster._core.storage.schedules.schema import JobTickTable as Ticks  # noqa: TID251
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage

from crypto_pipeline.database.statements import lock_keys
from crypto_pipeline.errors import ConfigError, DatabaseError
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG

T = TypeVar("T")

Assets: Final = event_tables.AssetKeyTable
Events: Final = event_tables.SqlEventLogStorageTable
EventTags: Final = event_tables.AssetEventTagsTable
Checks: Final = event_tables.AssetCheckExecutionsTable
Runs: Final = run_tables.RunsTable
RunTags: Final = run_tables.RunTagsTable
Backfills: Final = run_tables.BulkActionsTable
BackfillTags: Final = run_tables.BackfillTagsTable

#: What grows with every run, tick and backfill.
GROWING: Final = (Events, EventTags, Checks, Runs, RunTags, Backfills, BackfillTags, Ticks)

_ENDED: Final = ("SUCCESS", "FAILURE", "CANCELED")
_DONE: Final = ("COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED")
_BACKFILL_ENDED: Final = (*_DONE, "FAILED", "CANCELED")
_STATES: Final = ("ASSET_MATERIALIZATION", "ASSET_OBSERVATION")
_PLANNED: Final = "ASSET_MATERIALIZATION_PLANNED"
_RUNLESS: Final = ""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Runs old enough to be forgotten.

    Attributes:
        forgettable: those nothing rests on any more, oldest first.
        kept: how many hold the newest state of a partition, or belong to a backfill under way.
    """

    forgettable: Sequence[str]
    kept: int


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """Rows that went, by what they were."""

    runs: int = 0
    events: int = 0
    event_tags: int = 0
    check_results: int = 0
    backfills: int = 0

    def __add__(self, other: Deleted) -> Deleted:
        return Deleted(
            runs=self.runs + other.runs,
            events=self.events + other.events,
            event_tags=self.event_tags + other.event_tags,
            check_results=self.check_results + other.check_results,
            backfills=self.backfills + other.backfills,
        )


class History:
    """The tables of one instance, over one connection that holds the lock of maintenance."""

    def __init__(self, conn: sa.Connection) -> None:
        self._conn = conn

    def candidates(self, *, minute_runs_before: datetime, runs_before: datetime) -> Candidates:
        """Runs that ended before their limit: one for the minute schedule's, one for all others."""
        of_the_minute = (
            sa.select(RunTags.c.id)
            .where(RunTags.c.run_id == Runs.c.run_id, RunTags.c.key == EXCHANGE_TAG)
            .exists()
        )
        ended = sa.func.coalesce(Runs.c.end_time, sa.func.extract("epoch", Runs.c.update_timestamp))
        limit = sa.case(
            (of_the_minute, minute_runs_before.timestamp()), else_=runs_before.timestamp()
        )
        old = self._column(
            sa.select(Runs.c.run_id)
            .where(Runs.c.status.in_(_ENDED), ended < limit)
            .order_by(Runs.c.id)
        )
        held = self._state_holders() | self._of_backfills_under_way()
        forgettable = [run for run in old if run not in held]
        return Candidates(forgettable=forgettable, kept=len(old) - len(forgettable))

    def forget(self, runs: Sequence[str]) -> Deleted:
        """Delete runs with all that belongs to them, in one transaction."""
        with self._transaction():
            asset_events = sa.select(Events.c.id).where(
                Events.c.run_id.in_(runs), Events.c.dagster_event_type.in_(_STATES)
            )
            event_tags = self._delete(
                sa.delete(EventTags).where(EventTags.c.event_id.in_(asset_events))
            )
            check_results = sum(
                # By check: the only index that knows a run begins with it.
                self._delete(
                    sa.delete(Checks).where(
                        Checks.c.asset_key == asset,
                        Checks.c.check_name == check,
                        Checks.c.run_id.in_(runs),
                    )
                )
                for asset, check in self._checks
            )
            events = self._delete(sa.delete(Events).where(Events.c.run_id.in_(runs)))
            deleted = self._delete(sa.delete(Runs).where(Runs.c.run_id.in_(runs)))
        return Deleted(
            runs=deleted, events=events, event_tags=event_tags, check_results=check_results
        )

    def forget_leftovers(self, *, before: datetime) -> Deleted:
        """Delete check results whose run somebody deleted in the UI, and backfills without runs.

        The newest result of each partition stays, whatever became of its run.
        """
        naive = before.astimezone(UTC).replace(tzinfo=None)
        with self._transaction():
            check_results = self._delete(
                sa.delete(Checks).where(
                    Checks.c.evaluation_event_timestamp < naive,
                    Checks.c.run_id != _RUNLESS,
                    ~sa.select(Runs.c.id).where(Runs.c.run_id == Checks.c.run_id).exists(),
                    Checks.c.id.not_in(_newest_check_results()),
                )
            )
            old = sa.select(Backfills.c.key).where(
                Backfills.c.status.in_(_BACKFILL_ENDED),
                Backfills.c.timestamp < naive,
                ~sa.select(Runs.c.id).where(Runs.c.backfill_id == Backfills.c.key).exists(),
            )
            self._delete(sa.delete(BackfillTags).where(BackfillTags.c.backfill_id.in_(old)))
            backfills = self._delete(sa.delete(Backfills).where(Backfills.c.key.in_(old)))
        return Deleted(check_results=check_results, backfills=backfills)

    def vacuum(self, *, rewrite: bool = False) -> None:
        """Make the space of deleted rows usable again, and tell the planner what is left.

        Autovacuum gives way, and would be slower: what it has not freed by then makes the table
        grow. To rewrite a table gives its free space back to the disk, but locks it meanwhile.
        """
        options = "FULL, ANALYZE" if rewrite else "ANALYZE"
        statement = sa.DDL(  # type: ignore[no-untyped-call]
            "VACUUM (%(options)s) %(fullname)s", context={"options": options}
        )
        for table in GROWING:
            self._execute(statement.against(table))

    def size(self) -> int:
        """Bytes on disk of the tables that grow, with their indexes."""
        return sum(
            self._scalar(sa.select(sa.func.pg_total_relation_size(table.name))) for table in GROWING
        )

    def runs(self) -> int:
        """Runs that are remembered."""
        return self._scalar(sa.select(sa.func.count()).select_from(Runs))

    def _state_holders(self) -> set[str]:
        """Runs whose events or results are the state of some partition of some asset or check."""
        newest: set[int] = set()
        for asset in self._column(sa.select(Assets.c.asset_key)):
            materialized, observed, planned = (
                self._newest_events(asset, kind) for kind in (*_STATES, _PLANNED)
            )
            newest.update(materialized.values(), observed.values())
            # Tried again and failed since: the partition shows as failed.
            newest.update(n for key, n in planned.items() if n > materialized.get(key, 0))
        holders: set[str] = set()
        for ids in batches(sorted(newest), 5_000):
            holders.update(self._column(sa.select(Events.c.run_id).where(Events.c.id.in_(ids))))
        holders.update(
            self._column(
                sa.select(Checks.c.run_id)
                .where(Checks.c.id.in_(_newest_check_results()))
                .distinct()
            )
        )
        return holders

    def _newest_events(self, asset: str, kind: str) -> dict[str | None, int]:
        """By partition, the number of its newest event of a kind."""
        newest = (
            sa.select(Events.c.partition, sa.func.max(Events.c.id))
            .where(Events.c.asset_key == asset, Events.c.dagster_event_type == kind)
            .group_by(Events.c.partition)
        )
        return {key: newest_id for key, newest_id in self._execute(newest).tuples()}  # noqa: C416 - rows are no pairs to mypy

    def _of_backfills_under_way(self) -> set[str]:
        """Runs the backfill daemon still counts."""
        under_way = sa.select(Backfills.c.key).where(Backfills.c.status.not_in(_BACKFILL_ENDED))
        return set(self._column(sa.select(Runs.c.run_id).where(Runs.c.backfill_id.in_(under_way))))

    @cached_property
    def _checks(self) -> list[tuple[str, str]]:
        found = sa.select(Checks.c.asset_key, Checks.c.check_name).distinct()
        return [(asset, check) for asset, check in self._execute(found).all()]

    def _column(self, query: sa.Select[Any]) -> list[Any]:
        return list(self._execute(query).scalars())

    def _scalar(self, query: sa.Select[Any]) -> int:
        return int(self._execute(query).scalar_one())

    def _delete(self, statement: sa.Delete) -> int:
        return self._execute(statement).rowcount

    def _execute(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        with _told():
            return self._conn.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; Dagster's connections commit each statement by itself otherwise."""
        self._conn.commit()
        self._conn.execution_options(isolation_level="READ COMMITTED")
        with _told(), self._conn.begin():
            yield
        self._conn.execution_options(isolation_level="AUTOCOMMIT")


def _newest_check_results() -> sa.CompoundSelect[Any]:
    """Of each check and partition, the newest result, and the newest row if that is another one."""
    key = (Checks.c.asset_key, Checks.c.check_name, Checks.c.partition)
    newest = sa.select(sa.func.max(Checks.c.id)).group_by(*key)
    return newest.union(newest.where(Checks.c.execution_status != "PLANNED"))


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in parts of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def history_of(instance: dg.DagsterInstance) -> Iterator[History | None]:
    """The history of an instance, for one maintenance at a time; None if another has it.

    Raises:
        ConfigError: the instance does not keep its history in one PostgreSQL database.
        DatabaseError: it is away.
    """
    events, runs = instance.event_log_storage, instance.run_storage
    if (
        not isinstance(events, PostgresEventLogStorage)
        or not isinstance(runs, PostgresRunStorage)
        or events.postgres_url != runs.postgres_url
    ):
        raise ConfigError(
            "Dagster does not keep runs and events in one PostgreSQL database, so nothing bounds them.",
            hint="configure storage.postgres in dagster.yaml, as the project's own does.",
        )
    (key,) = lock_keys(purpose="maintenance", exchange="")
    with _told(), events.index_connection() as conn:
        # Goes with the session, however it ends.
        alone = conn.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one()
        yield History(conn) if alone else None


@contextmanager
def _told() -> Iterator[None]:
    """SQLAlchemy's errors, without the statement and its parameters."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise DatabaseError(
            f"The run history cannot be read or written: {str(error.orig).strip()}",
            hint="see whether Dagster's database is up; the next maintenance goes on.",
        ) from error
