"""The sensor that fills gaps: which days it asks for again, when, and when not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms, to_ms
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.exchange_states import note_answered
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.healing import SENSOR
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.orchestration.resources import ClockResource
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, HEALS_TAG, RANGE_END, RANGE_START
from crypto_pipeline.settings import CONFIG, DATABASE_URL, HOME, read_settings
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.database import gaps
from crypto_pipeline_tests.pipelines import Pipeline

PIPELINE = """
exchanges:
  binance: {symbols: ["BTC/USDT"], start: 2024-03-01}
  kraken: {symbols: ["BTC/USD"], start: 2024-03-01}
backfill: {partitions_per_run: 4}
"""
TODAY = date(2024, 3, 20)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def march(day: int) -> date:
    return date(2024, 3, day)


@dataclass
class Sensor:
    """The sensor over a database and an instance; the ledger is written by the tests."""

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    conn: psycopg.Connection
    now: datetime = datetime(2024, 3, 20, 12, tzinfo=UTC)
    judged: set[tuple[str, date]] = field(default_factory=set)

    def evaluate(self) -> list[dg.RunRequest | dg.SkipReason]:
        """As :meth:`Pipeline.heal` does."""
        sensor = self.definitions.resolve_sensor_def(SENSOR)
        given = self.definitions.resources or {}
        wanted = {name: given[name] for name in sensor.required_resource_keys}
        with dg.build_sensor_context(
            instance=self.instance, definitions=self.definitions, resources=wanted
        ) as context:
            return list(sensor(context))

    def asked(self, exchange: str = "binance") -> tuple[str, str] | None:
        """First and last day of the run it asks for, as in ``("03-14", "03-17")``."""
        found = [
            request
            for request in self.evaluate()
            if isinstance(request, dg.RunRequest) and request.tags[HEALS_TAG] == exchange
        ]
        if not found:
            return None
        (request,) = found
        first = request.partition_key or request.tags[RANGE_START]
        last = request.partition_key or request.tags[RANGE_END]
        assert (first == last) == (RANGE_START not in request.tags)
        assert {first.split("|")[1], last.split("|")[1]} == {exchange}
        return first[5:10], last[5:10]

    def skipped(self) -> str:
        (reason,) = self.evaluate()
        assert isinstance(reason, dg.SkipReason)
        return str(reason.skip_message)

    def record(
        self,
        *days: int,
        cause: str = "",
        exchange: str = "binance",
        said: bool = True,
        **changes: Any,
    ) -> None:
        """Days of March as the ledger has them; with a cause its first ten minutes are missing.

        ``said``: a check judged them.
        """
        for day in map(march, days):
            if said and (exchange, day) not in self.judged:
                self.judge(exchange, day, passed=not cause)
            looked = day_start_ms(day) + 2 * DAY_MS
            state = {"live": True, "checked_at": looked, "answered_at": None}
            found = []
            if cause:
                gap = gaps.moved(gaps.gap(0, 10, cause, last_checked=looked), day)
                retry = {name: changes.pop(name) for name in ("next_retry",) if name in changes}
                found = [replace(gap, **retry)]
            gaps.record(self.conn, *found, day=day, exchange=exchange, **{**state, **changes})

    def judge(self, exchange: str, day: date, *, passed: bool) -> None:
        """As a check of the day does; of those without a run Dagster takes one a partition."""
        self.judged.add((exchange, day))
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("timescale_candles"),
                check_name="completeness",
                passed=passed,
                partition=partition_key(exchange, day),
            )
        )

    def run(self, status: str, **tags: str) -> dg.DagsterRun:
        """A run the instance knows of; ``FAILURE`` is one that ended just now."""
        run = dg.DagsterRun(
            job_name=OHLCV_JOB,
            status=dg.DagsterRunStatus.STARTED if status == "FAILURE" else _STATUS[status],
            tags=tags,
        )
        self.instance.add_run(run)
        if status == "FAILURE":
            self.instance.report_run_failed(run)
        return run

    def ended(self) -> datetime:
        """When the newest run ended."""
        (record,) = self.instance.get_run_records(limit=1)
        assert record.end_time is not None
        return datetime.fromtimestamp(record.end_time, UTC)


_STATUS = {status.value: status for status in dg.DagsterRunStatus}


@pytest.fixture
def sensor(tmp_path: Path, new_database: Callable[[], str]) -> Iterator[Sensor]:
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    url = new_database()
    environment = {
        CONFIG: str(tmp_path / "pipeline.yaml"), HOME: str(tmp_path), DATABASE_URL: url
    }  # fmt: skip
    with (
        dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance,
        connect(url) as conn,
    ):
        clock = ClockResource(lambda: made.now)
        definitions = build_defs(
            settings=read_settings(environment), resource_overrides={"clock": clock}
        )
        made = Sensor(definitions, instance, conn)
        yield made


# --- Which days are due ---------------------------------------------------------------------------


def test_nothing_is_asked_for_where_nothing_is_due(sensor: Sensor) -> None:
    """Neither of an empty ledger nor of complete days, nor for what is proven to be absent."""
    assert sensor.skipped() == "binance: nothing is due; kraken: nothing is due"
    sensor.record(14, 15, 16, 17)
    sensor.record(18, 19, cause="no_trades", checked_at=to_ms(sensor.now))
    assert sensor.skipped() == "binance: nothing is due; kraken: nothing is due"


@pytest.mark.parametrize("cause", ["fetch_failed", "rejected", "unknown"])
def test_a_day_with_a_gap_is_due_after_its_pause_and_not_before(sensor: Sensor, cause: str) -> None:
    """How long the pause is, the ledger says."""
    sensor.record(14, 15, 16, 17, 18, 19, checked_at=to_ms(sensor.now))
    retry = to_ms(sensor.now)
    sensor.record(17, cause=cause, next_retry=retry, checked_at=retry)
    sensor.now -= timedelta(seconds=1)
    assert sensor.asked() is None
    sensor.now += timedelta(seconds=1)
    assert sensor.asked() == ("03-17", "03-17")


def test_a_failed_day_is_due_at_once_when_the_exchange_is_back(sensor: Sensor) -> None:
    """What kept it from answering is over; a rejected candle is another matter."""
    failed, retry = to_ms(sensor.now - 10 * MINUTE), to_ms(sensor.now + 60 * MINUTE)
    sensor.record(18, cause="fetch_failed", next_retry=retry, checked_at=failed)
    sensor.record(19, cause="rejected", next_retry=retry, checked_at=failed)
    note_answered(sensor.conn, exchange="binance", at=day_start_ms(march(18)))
    assert sensor.asked() is None
    note_answered(sensor.conn, exchange="binance", at=to_ms(sensor.now))
    assert sensor.asked() == ("03-18", "03-18")


def test_a_complete_day_that_no_check_judged_is_due(sensor: Sensor) -> None:
    """A run stored the day and failed on another: complete, and grey for ever."""
    of_late: dict[str, Any] = {"checked_at": to_ms(sensor.now), "live": False}
    sensor.record(14, 15, 16, 17, 18, **of_late)
    sensor.record(16, 17, said=False, exchange="kraken", **of_late)
    sensor.record(18, exchange="kraken", **of_late)
    assert sensor.asked() is None
    assert sensor.asked("kraken") == ("03-16", "03-17")
    sensor.run("STARTED", **{RANGE_START: "2024-03-16|kraken", RANGE_END: "2024-03-17|kraken"})
    assert sensor.asked("kraken") is None


def test_a_day_that_fails_again_and_again_keeps_no_other_grey(sensor: Sensor) -> None:
    """Nothing says when to try it again, and the newest goes first: the others would never come."""
    sensor.record(14, 15, 16, said=False, checked_at=to_ms(sensor.now), live=False)
    sensor.record(17, 18, checked_at=to_ms(sensor.now), live=False)
    failed = {"dagster/partition": partition_key("binance", march(16)), HEALS_TAG: "binance"}
    sensor.run("FAILURE", **failed)
    sensor.now = sensor.ended() + timedelta(days=1)
    sensor.conn.execute("UPDATE candle_partitions SET checked_at = %s", [sensor.now])
    assert sensor.asked() == ("03-14", "03-15")
    sensor.judge("binance", march(14), passed=True)
    sensor.judge("binance", march(15), passed=True)
    assert sensor.asked() == ("03-16", "03-16")


def test_runs_over_somebody_else_s_partitions_are_in_nobody_s_way(sensor: Sensor) -> None:
    sensor.record(16, said=False, checked_at=to_ms(sensor.now), live=False)
    for key in ("2024-02-01", "foo", "foo|bar", "binance|2023-01-01"):
        sensor.run("STARTED", **{"dagster/partition": key})
    assert sensor.asked() == ("03-16", "03-16")


def test_a_day_before_the_start_is_nobody_s(sensor: Sensor) -> None:
    """The start was moved: a request for a partition that is none fails the tick of all exchanges."""
    before = date(2024, 2, 28)
    gaps.record(
        sensor.conn, day=before, exchange="binance", live=False, checked_at=to_ms(sensor.now),
        answered_at=None,
    )  # fmt: skip
    assert sensor.asked() is None
    gone = {RANGE_START: "2024-02-27|kraken", RANGE_END: "2024-02-28|kraken"}
    sensor.run("STARTED", **gone)
    sensor.record(15, 16, said=False, checked_at=to_ms(sensor.now), live=False)
    assert sensor.asked() == ("03-15", "03-16")
    half_gone = {RANGE_START: "2024-02-28|binance", RANGE_END: "2024-03-15|binance"}
    sensor.run("STARTED", **half_gone)
    assert sensor.asked() == ("03-16", "03-16")


def test_records_that_somebody_removed_are_not_made_again(sensor: Sensor) -> None:
    long_ago = to_ms(sensor.now - timedelta(days=2))
    sensor.record(16, 17, said=False, checked_at=long_ago, live=False)
    assert sensor.asked() is None


def test_days_never_collected_are_due_since_the_schedule_first_ran(sensor: Sensor) -> None:
    """A downtime of days is filled; history before it is for a backfill to ask for."""
    sensor.record(10, live=False)
    assert sensor.asked() is None
    sensor.record(15)
    sensor.record(19)
    assert sensor.asked() == ("03-16", "03-18")


def test_a_day_that_was_last_looked_at_before_its_end_is_due(sensor: Sensor) -> None:
    """The process stopped in the evening: what the ledger says of that day is not all of it."""
    late = day_start_ms(march(18)) - MINUTE_MS
    sensor.record(16, 18, 19, checked_at=to_ms(sensor.now))
    sensor.record(17, checked_at=late)
    assert sensor.asked() == ("03-17", "03-17")


def test_yesterday_is_left_to_the_minute_schedule_in_the_first_minutes_of_a_day(
    sensor: Sensor,
) -> None:
    """Its last candles are read again until 00:04, and are due three minutes after their close."""
    midnight = datetime(2024, 3, 20, tzinfo=UTC)
    sensor.record(18, checked_at=to_ms(midnight))
    sensor.record(19, checked_at=to_ms(midnight - MINUTE))
    due = []
    for minute in range(15):
        sensor.now = midnight + minute * MINUTE
        due += [minute] if sensor.asked() else []
    assert due == list(range(8, 15))


def test_today_is_never_asked_for(sensor: Sensor) -> None:
    """Its gaps are the minute schedule's business, however long they have been due."""
    sensor.record(19, checked_at=to_ms(sensor.now))
    sensor.record(
        20, cause="fetch_failed", next_retry=day_start_ms(TODAY), checked_at=to_ms(sensor.now)
    )
    assert sensor.asked() is None
    sensor.now += DAY
    assert sensor.asked() == ("03-20", "03-20")


def test_days_before_the_exchange_is_collected_are_not_asked_for(sensor: Sensor) -> None:
    """``start`` was moved on in the configuration; the ledger still has older days."""
    old = date(2024, 2, 27)
    gap = gaps.moved(gaps.gap(0, 10, "unknown", next_retry=0), old)
    gaps.record(sensor.conn, gap, day=old, checked_at=day_start_ms(march(1)))
    assert sensor.asked() is None


# --- One run over them ----------------------------------------------------------------------------


def test_days_on_end_are_one_run_of_at_most_so_many_the_newest_first(sensor: Sensor) -> None:
    """Four a run here: the newest block, and when that is done the one before it."""
    sensor.record(*range(2, 20), checked_at=to_ms(sensor.now))
    due = {"cause": "unknown", "next_retry": 0, "checked_at": to_ms(sensor.now)}
    for day in (3, 8, 9, 10, 11, 12, 13, 16):
        sensor.record(day, **due)
    blocks = []
    while (block := sensor.asked()) is not None:
        blocks.append(block)
        first, last = (int(text[3:]) for text in block)
        sensor.now += MINUTE
        sensor.record(*range(first, last + 1), checked_at=to_ms(sensor.now))
    assert blocks == [
        ("03-16", "03-16"), ("03-10", "03-13"), ("03-08", "03-09"), ("03-03", "03-03")
    ]  # fmt: skip


def test_a_run_key_is_asked_for_once_a_look(sensor: Sensor) -> None:
    """Dagster launches no second run of a key: each look at the same days has its own."""
    sensor.record(17, cause="unknown", next_retry=0)
    sensor.record(18, 19, checked_at=to_ms(sensor.now))
    first = sensor.evaluate()[0]
    sensor.now += MINUTE
    second = sensor.evaluate()[0]
    assert isinstance(first, dg.RunRequest)
    assert isinstance(second, dg.RunRequest)
    assert first.run_key != second.run_key


# --- What is in the way ---------------------------------------------------------------------------


@pytest.fixture
def due(sensor: Sensor) -> Sensor:
    """Days 14 to 17 of both exchanges are due."""
    for exchange in ("binance", "kraken"):
        for day in range(14, 18):
            sensor.record(day, cause="unknown", next_retry=0, exchange=exchange)
        sensor.record(18, 19, exchange=exchange, checked_at=to_ms(sensor.now))
    return sensor


@pytest.mark.parametrize("status", ["NOT_STARTED", "STARTING", "STARTED", "CANCELING"])
def test_one_run_an_exchange_at_a_time(due: Sensor, status: str) -> None:
    """The other exchange's goes on."""
    due.run(status, **{HEALS_TAG: "binance"})
    assert due.asked() is None
    assert due.asked("kraken") == ("03-14", "03-17")
    run = due.run(status, **{HEALS_TAG: "kraken"})
    assert f"kraken: run {run.run_id} is under way" in due.skipped()


@pytest.mark.parametrize("status", ["SUCCESS", "CANCELED"])
def test_a_run_that_ended_is_not_in_the_way(due: Sensor, status: str) -> None:
    """What is still due after it is asked for again; the ledger knows when."""
    due.run(status, **{HEALS_TAG: "binance"})
    assert due.asked() == ("03-14", "03-17")


def test_days_another_run_is_busy_with_are_left_out(due: Sensor) -> None:
    """The minute schedule's, a person's, and each partition of a backfill's range."""
    due.run("STARTED", **{EXCHANGE_TAG: "binance", "dagster/partition": "2024-03-17|binance"})
    assert due.asked() == ("03-14", "03-16")
    due.run("STARTING", **{RANGE_START: "2024-03-10|binance", RANGE_END: "2024-03-14|binance"})
    assert due.asked() == ("03-15", "03-16")
    assert due.asked("kraken") == ("03-14", "03-17")
    due.run("STARTED", **{RANGE_START: "2024-03-16|binance", RANGE_END: "2024-03-16|kraken"})
    assert due.asked() == ("03-15", "03-15")
    assert due.asked("kraken") == ("03-17", "03-17")
    due.run("FAILURE", **{RANGE_START: "2024-03-15|binance", RANGE_END: "2024-03-15|binance"})
    assert due.asked() == ("03-15", "03-15")


def test_failed_runs_pause_longer_and_longer(due: Sensor) -> None:
    """One that could not even record what failed; Dagster's clock says when it ended."""
    for pause in (1, 2, 4, 8):
        due.run("FAILURE", **{HEALS_TAG: "binance"})
        ended = due.ended()
        due.now = ended + pause * MINUTE - timedelta(seconds=1)
        assert due.asked() is None
        assert due.asked("kraken") is not None
        due.now = ended + pause * MINUTE + timedelta(seconds=1)
        assert due.asked() is not None
    for _ in range(10):
        due.run("FAILURE", **{HEALS_TAG: "binance"})
    due.now = due.ended() + timedelta(hours=6, seconds=1)
    assert due.asked() is not None


def test_a_run_that_succeeds_ends_the_count_of_failures(due: Sensor) -> None:
    """The next failure pauses for a minute again."""
    for status in ("FAILURE", "FAILURE", "FAILURE", "SUCCESS", "FAILURE"):
        due.run(status, **{HEALS_TAG: "binance"})
    due.now = due.ended() + MINUTE + timedelta(seconds=1)
    assert due.asked() is not None


def test_the_pause_ends_when_the_exchange_is_back(due: Sensor) -> None:
    """Not when it answers as it did before the failure: then something else is wrong."""
    before = datetime.now(UTC) - MINUTE
    note_answered(due.conn, exchange="binance", at=to_ms(before))
    for _ in range(5):
        due.run("FAILURE", **{HEALS_TAG: "binance"})
    due.now = due.ended() + 10 * MINUTE
    note_answered(due.conn, exchange="binance", at=to_ms(before + 2 * MINUTE))
    assert due.asked() is None
    note_answered(due.conn, exchange="binance", at=to_ms(due.now))
    assert due.asked() is not None


# --- The whole of it ------------------------------------------------------------------------------


def test_a_downtime_of_days_is_filled(
    simulate: Callable[[SimulatorConfig], SimulatorHandle], pipeline: Callable[..., Pipeline]
) -> None:
    """Ticks before and after, nothing by hand: one healing run, and every candle is there."""
    start = day_start_ms(march(14))
    simulator = simulate(
        SimulatorConfig.parse(
            {
                "clock": {"frozen_at": start + 12 * 60 * MINUTE_MS},
                "exchanges": {"binance": {"symbols": ["BTC/USDT", "ETH/USDT"]}},
            },
            origin="the test",
        )
    )
    candles = pipeline(simulator, start=march(14))
    assert candles.tick("binance", "2024-03-14").success
    now = start + 3 * DAY_MS + 60 * MINUTE_MS
    simulator.control.set_clock(frozen_at=now)
    assert candles.tick("binance", "2024-03-17").success
    (healed,) = candles.heal()
    assert healed.success
    assert healed.dagster_run.tags[RANGE_START] == "2024-03-14|binance"
    assert healed.dagster_run.tags[RANGE_END] == "2024-03-16|binance"
    assert candles.candles().equals(candles.truth("binance", start, now))
    assert candles.heal() == []
