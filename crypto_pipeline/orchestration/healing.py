"""The sensor that fills gaps: finds days that are not complete and due, and launches range runs.

At most one such run an exchange, never one over partitions another run is busy with. Today's gaps
are the minute schedule's business; how often a gap is tried again is the ledger's
(:func:`crypto_pipeline.core.planning.next_try`).
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import dagster as dg
import psycopg

# Not exported by dagster; pinned by the tests of this module.
from dagster._check import CheckError
from dagster._core.storage.asset_check_execution_record import (  # noqa: TID251
    AssetCheckExecutionRecordStatus,
)

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.core.planning import LONGEST_PAUSE_MS
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms, to_ms
from crypto_pipeline.database.exchange_states import back_at
from crypto_pipeline.database.gap_reader import (
    due_days,
    live_since,
    partition_states,
)
from crypto_pipeline.orchestration.ahead import STORED
from crypto_pipeline.orchestration.partitions import partition_key, partitions_of
from crypto_pipeline.orchestration.resources import ClockResource, DatabaseResource
from crypto_pipeline.orchestration.schedules import UNDER_WAY
from crypto_pipeline.orchestration.tags import HEALS_TAG, RANGE_END, RANGE_START

SENSOR: Final = "heal_ohlcv"
_EVERY_SECONDS: Final = 30
_RECENT: Final = 10
#: The check that makes a complete day green.
_SAYS_SO: Final = "completeness"
#: Whoever removes all records of days that are older is not asked to have them made again.
_OF_LATE: Final = timedelta(days=1)


def build_sensor(
    config: PipelineConfig, partitions: dg.MultiPartitionsDefinition, job: object
) -> dg.SensorDefinition:
    """The sensor ``heal_ohlcv``."""

    @dg.sensor(
        name=SENSOR,
        job=job,  # type: ignore[arg-type]
        minimum_interval_seconds=_EVERY_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Fills gaps by itself: after an outage, a downtime, a bad answer. One run an"
        " exchange at a time, over the newest days that are not complete and due for another try.",
    )
    def heal_ohlcv(
        context: dg.SensorEvaluationContext,
        database: dg.ResourceParam[DatabaseResource],
        clock: dg.ResourceParam[ClockResource],
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        reasons = []
        with database.connect() as conn:
            for exchange in config.exchanges:
                reason = _in_the_way(context.instance, conn, exchange, clock.now())
                if reason is None:
                    busy = _busy_days(context.instance, partitions, exchange)
                    due = [d for d in _due(conn, config, exchange, clock.now()) if d not in busy]
                    if not due:
                        grey = _never_said(context.instance, conn, config, exchange, clock.now())
                        due = [day for day in grey if day not in busy]
                        # No ledger says when to try one of these again: the others go first.
                        failed = _failed_days(context.instance, partitions, exchange)
                        due = [day for day in due if day not in failed] or due
                    if due:
                        yield _request(config, exchange, due, clock.now())
                        continue
                    reason = "nothing is due"
                reasons.append(f"{exchange}: {reason}")
        if len(reasons) == len(config.exchanges):
            yield dg.SkipReason("; ".join(reasons))

    return heal_ohlcv


def _due(
    conn: psycopg.Connection, config: PipelineConfig, exchange: str, now: datetime
) -> list[date]:
    """Days before today to collect again, oldest first.

    Those with a gap that is due; and since the minute schedule first ran, those that were never
    collected or never looked at since they ended.
    """
    today = now.astimezone(UTC).date()
    start = config.exchanges[exchange].start
    days = set(due_days(conn, exchange=exchange, now=now))
    since = live_since(conn, exchange=exchange)
    lag = config.live.max_lag_seconds * 1_000
    # The minute schedule still reads yesterday's last candles again, and looks at it then.
    looked_at = lag + (config.live.reread + 2) * MINUTE_MS
    if since is not None:
        states = partition_states(conn, exchange=exchange, since=since)
        for day in (since + timedelta(days=n) for n in range((today - since).days)):
            end, state = day_start_ms(day) + DAY_MS, states.get(day)
            if to_ms(now) >= end + looked_at and (state is None or state.checked_at < end + lag):
                days.add(day)
    return sorted(day for day in days if start <= day < today)


def _never_said(
    instance: dg.DagsterInstance,
    conn: psycopg.Connection,
    config: PipelineConfig,
    exchange: str,
    now: datetime,
) -> list[date]:
    """Days before today that the ledger has as complete, and of which no check has said so.

    A run that fails or dies after a day was stored leaves one that is complete and not green; no answer
    is missing, so a run over it asks for nothing. Its check is planned then; or was never, where the
    day was found complete of late: older records may have been removed.
    """
    start, today = config.exchanges[exchange].start, now.astimezone(UTC).date()
    states = partition_states(conn, exchange=exchange, since=start)
    days = {
        partition_key(exchange, day): day
        for day, state in states.items()
        if state.complete and day < today
    }
    if not days:
        return []
    judged = instance.event_log_storage.get_asset_check_partition_info(
        [dg.AssetCheckKey(dg.AssetKey(STORED), _SAYS_SO)], partition_keys=list(days)
    )
    said = {each.partition_key: each.latest_execution_status for each in judged}
    of_late = to_ms(now - _OF_LATE)
    return [
        day
        for key, day in days.items()
        if said.get(key) == AssetCheckExecutionRecordStatus.PLANNED
        or (key not in said and states[day].checked_at >= of_late)
    ]


def _request(
    config: PipelineConfig, exchange: str, due: Sequence[date], now: datetime
) -> dg.RunRequest:
    """One run over the newest due days that follow one another."""
    block = [due[-1]]
    while len(block) < config.backfill.partitions_per_run and block[0] - timedelta(days=1) in due:
        block.insert(0, block[0] - timedelta(days=1))
    first, last = (partition_key(exchange, day) for day in (block[0], block[-1]))
    return dg.RunRequest(
        run_key=f"{SENSOR} {first} {last} {now:%Y-%m-%dT%H:%M:%SZ}",
        partition_key=first if len(block) == 1 else None,
        tags={
            HEALS_TAG: exchange,
            "dagster/priority": "5",  # after the minute's runs, before a backfill's
            "dagster/max_retries": "0",  # this sensor tries again, after pauses
            **({RANGE_START: first, RANGE_END: last} if len(block) > 1 else {}),
        },
    )


def _in_the_way(
    instance: dg.DagsterInstance, conn: psycopg.Connection, exchange: str, now: datetime
) -> str | None:
    """Why no run may start now: one is under way, or the last ones failed a short time ago.

    What a run could not even record is tried again after growing pauses; an exchange that came back
    since is tried at once.
    """
    recent = instance.get_run_records(dg.RunsFilter(tags={HEALS_TAG: exchange}), limit=_RECENT)
    if not recent:
        return None
    newest = recent[0]
    if newest.dagster_run.status in UNDER_WAY:
        return f"run {newest.dagster_run.run_id} is under way"
    failures = 0
    for record in recent:
        if record.dagster_run.status != dg.DagsterRunStatus.FAILURE:
            break
        failures += 1
    ended = round((newest.end_time or newest.update_timestamp.timestamp()) * 1_000)
    if not failures or (back_at(conn, exchange=exchange) or 0) > ended:
        return None
    pause = min(LONGEST_PAUSE_MS, MINUTE_MS * 2 ** (failures - 1))
    left = ended + pause - to_ms(now)
    return f"{failures} runs failed; the next one in {left // 1_000} s" if left > 0 else None


def _busy_days(
    instance: dg.DagsterInstance, partitions: dg.MultiPartitionsDefinition, exchange: str
) -> set[date]:
    """Days of the exchange that a run under way collects."""
    return _days_of(
        instance.get_run_records(dg.RunsFilter(statuses=UNDER_WAY)), partitions, exchange
    )


def _failed_days(
    instance: dg.DagsterInstance, partitions: dg.MultiPartitionsDefinition, exchange: str
) -> set[date]:
    """Days that this sensor's last runs failed on."""
    failed = dg.RunsFilter(tags={HEALS_TAG: exchange}, statuses=[dg.DagsterRunStatus.FAILURE])
    return _days_of(instance.get_run_records(failed, limit=_RECENT), partitions, exchange)


def _days_of(
    runs: Sequence[dg.RunRecord], partitions: dg.MultiPartitionsDefinition, exchange: str
) -> set[date]:
    """Days of the exchange among the runs' partitions."""
    found: set[date] = set()
    for record in runs:
        tags = record.dagster_run.tags
        first = tags.get(RANGE_START) or tags.get("dagster/partition")
        last = tags.get(RANGE_END) or first
        if first is None or last is None:
            continue
        if partitions.has_partition_key(first) and partitions.has_partition_key(last):
            keys = partitions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
            found.update(one.day for one in partitions_of(keys) if one.exchange == exchange)
            continue
        # A start that was moved since leaves runs over partitions that are none any more.
        try:
            ends = partitions_of(map(partitions.get_partition_key_from_str, (first, last)))
        except (CheckError, ValueError):
            continue  # of somebody else's partitions
        if exchange in {end.exchange for end in ends}:
            begun, done = sorted(end.day for end in ends)
            found.update(begun + timedelta(days=n) for n in range((done - begun).days + 1))
    return found
