"""A range run takes each day all the way while others are asked for, and only where it may."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pandas as pd
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.core.validation import Validation
from crypto_pipeline.corridor.collect import Collection
from crypto_pipeline.corridor.collected import Collected
from crypto_pipeline.errors import LakeError
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.orchestration import assets, io_managers, onward, validating
from crypto_pipeline.orchestration.ahead import STORED, DoneAhead
from crypto_pipeline.orchestration.check_results import Verdict
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.partitions import Partition
from crypto_pipeline.orchestration.tags import RANGE_END, RANGE_START
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle
from crypto_pipeline_tests.pipelines import Pipeline, results

FIRST, DAYS = date(2024, 3, 5), 6
SPAN = f"{FIRST}|binance", f"{FIRST + timedelta(DAYS - 1)}|binance"
LATE = 12.0
HOUR_MS = 3_600_000

_FAIL_ONCE = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('attempts') = 1 THEN RAISE EXCEPTION 'no room'; END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER fail_once BEFORE INSERT ON candles FOR EACH STATEMENT EXECUTE FUNCTION fail_once();
"""


@pytest.fixture
def simulator(simulate: Callable[[SimulatorConfig], SimulatorHandle]) -> SimulatorHandle:
    exchange = {"symbols": ["BTC/USDT", "ETH/USDT"], "quiet_rate": 0}
    clock = {"starts_at": day_start_ms(FIRST) + 20 * DAY_MS}
    return simulate(
        SimulatorConfig.parse({"clock": clock, "exchanges": {"binance": exchange}}, origin="test")
    )


@pytest.fixture
def candles(simulator: SimulatorHandle, pipeline: Callable[..., Pipeline]) -> Pipeline:
    return pipeline(
        simulator,
        start=FIRST,
        backfill={"partitions_per_run": DAYS},
        exchanges={"binance": {"timeout_seconds": 30}},
    )


def truth(candles: Pipeline) -> object:
    return candles.truth("binance", day_start_ms(FIRST), day_start_ms(FIRST) + DAYS * DAY_MS)


def stored(candles: Pipeline) -> set[date]:
    return {day for (day,) in candles.rows("SELECT DISTINCT open_time::date FROM candles")}


def test_the_first_days_are_stored_while_the_last_ones_are_asked_for(
    candles: Pipeline, simulator: SimulatorHandle
) -> None:
    """Asking for a month, then validating it, then storing it leaves the exchange idle meanwhile."""
    pages = -(-DAYS * 1_440 // 1_000) * 2
    simulator.control.add_fault(
        act="delay", latency=LATE, exchange="binance", endpoint="candles", nth=pages
    )
    job = candles.definitions.resolve_job_def(OHLCV_JOB)
    instance = candles.instance
    found: list[dg.ExecuteInProcessResult] = []

    def run() -> None:
        tags = dict(zip((RANGE_START, RANGE_END), SPAN, strict=True))
        found.append(job.execute_in_process(instance=instance, tags=tags, raise_on_error=False))

    running = threading.Thread(target=run)
    running.start()
    arrived: list[object] = []
    while len(arrived) < pages and running.is_alive():
        arrived = simulator.control.arrivals(endpoint="candles")
        time.sleep(0.05)
    early: set[date] = set()
    deadline = time.monotonic() + LATE / 2  # the last answer is still to come
    while len(early) < DAYS - 1 and time.monotonic() < deadline:
        early = stored(candles)
        time.sleep(0.1)
    still_asking = running.is_alive()
    running.join()
    assert still_asking
    assert early >= {FIRST + timedelta(n) for n in range(DAYS - 2)}
    assert found[0].success
    assert candles.candles().equals(truth(candles))
    checks = found[0].get_asset_check_evaluations()
    assert len(checks) == 6 * DAYS
    assert all(check.passed for check in checks)
    materialized = found[0].get_asset_materialization_events()
    assert len(materialized) == 3 * DAYS
    rows = [
        event.materialization.metadata["inserted"].value
        for event in materialized
        if event.asset_key == dg.AssetKey("timescale_candles")
    ]
    assert rows == [2_880] * DAYS


def test_a_run_of_the_raw_asset_alone_stores_nothing(candles: Pipeline) -> None:
    job = candles.definitions.resolve_job_def(OHLCV_JOB)
    job.get_subset(asset_selection={dg.AssetKey("raw_ohlcv")}).execute_in_process(
        instance=candles.instance, tags=dict(zip((RANGE_START, RANGE_END), SPAN, strict=True))
    )
    assert stored(candles) == set()
    assert not (candles.settings.home / "lake" / "validated").exists()


def test_what_fails_ahead_is_done_by_its_step(candles: Pipeline) -> None:
    candles.execute(_FAIL_ONCE)
    assert candles.run(*SPAN).success
    assert candles.rows("SELECT last_value > 1 FROM attempts") == [(True,)]
    assert candles.candles().equals(truth(candles))


def test_what_the_blocking_check_refuses_is_not_stored_ahead(
    candles: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """candle_schema stands before the table: ahead of its step, too."""
    refused = Verdict(passed=False, description="broken")
    monkeypatch.setattr(onward, "candle_schema", lambda frame: refused)
    done = candles.run(*SPAN, may_fail=True)
    assert not done.success
    assert not all(
        check.passed for (name, _), check in results(done).items() if name == "candle_schema"
    )
    assert stored(candles) == set()


@pytest.mark.parametrize("how", ["dropped", "cut"])
def test_a_file_that_was_written_badly_is_noticed(
    candles: Pipeline, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Judged is what the archive holds, not what was given to it."""
    write = LakeStorage.write

    def bad(self: LakeStorage, name: str, content: bytes, **named: Any) -> None:
        if name.startswith("validated/") and str(FIRST + timedelta(1)) in name:
            if how == "dropped":
                return
            content = content[: len(content) // 2]
        write(self, name, content, **named)

    monkeypatch.setattr(LakeStorage, "write", bad)
    assert not candles.run(*SPAN, may_fail=True).success


def test_today_is_judged_when_its_step_comes(
    candles: Pipeline, simulator: SimulatorHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another exchange of the range takes three hours: what was fresh then is not complete now."""
    last = FIRST + timedelta(DAYS - 1)
    simulator.control.set_clock(starts_at=day_start_ms(last) + 10 * HOUR_MS)
    collect = assets._collect_each
    late = [0]
    now = Pipeline.now.fget
    assert now is not None
    monkeypatch.setattr(Pipeline, "now", property(lambda self: now(self) + late[0]))

    def slow(*arguments: Any) -> None:
        collect(*arguments)
        late[0] = 3 * HOUR_MS

    monkeypatch.setattr(assets, "_collect_each", slow)
    judged = results(candles.run(*SPAN, may_fail=True))
    today = f"{last}|binance"
    for name in ("every_request_answered", "completeness", "seconds_behind_now"):
        assert not judged[name, today].passed, name
    assert judged["completeness", SPAN[0]].passed


def test_days_of_a_run_that_dies_are_done_again(
    candles: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored ahead, but no step said so: they are not green, and the sensor must know."""
    run = Collection.run

    async def dies(self: Collection) -> Collected:
        await run(self)
        await asyncio.sleep(3)
        raise LakeError("the store is away", hint="see to it.", rerun_helps=True)

    monkeypatch.setattr(Collection, "run", dies)
    assert not candles.run(*SPAN, may_fail=True).success
    assert stored(candles)
    monkeypatch.setattr(Collection, "run", run)
    now = Pipeline.now.fget
    assert now is not None
    monkeypatch.setattr(Pipeline, "now", property(lambda self: now(self) + 8 * HOUR_MS))
    assert [healed.success for healed in candles.heal()] == [True]
    for asset in ("raw_ohlcv", "validated_ohlcv", "timescale_candles"):
        green = candles.instance.get_materialized_partitions(dg.AssetKey(asset))
        assert len(green) == DAYS, asset
    assert candles.candles().equals(truth(candles))


def test_days_that_were_green_and_whose_next_run_died_are_judged_again(
    candles: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checks stay planned: what was green is grey, though no candle is missing.

    Also of days that no run has looked at for long: the failed one did not come to any.
    """
    assert candles.run(*SPAN).success
    candles.execute("UPDATE candle_partitions SET checked_at = checked_at - interval '3 days'")
    with monkeypatch.context() as patch:
        patch.setattr(io_managers.TimescaleIOManager, "handle_output", dies)
        patch.setattr(assets.OnwardResource, "goes_on", lambda self, context: False)
        assert not candles.run(*SPAN, may_fail=True).success
    assert len(planned(candles)) == DAYS
    assert [healed.success for healed in candles.heal()] == [True]
    assert planned(candles) == []
    assert candles.heal() == []


def planned(candles: Pipeline) -> list[str | None]:
    found = candles.instance.event_log_storage.get_asset_check_partition_info(
        [dg.AssetCheckKey(dg.AssetKey("timescale_candles"), "completeness")]
    )
    status = AssetCheckExecutionRecordStatus.PLANNED
    return [each.partition_key for each in found if each.latest_execution_status == status]


def dies(*arguments: Any) -> None:
    raise LakeError("the store is away", hint="see to it.", rerun_helps=True)


def test_what_was_validated_and_not_stored_is_not_called_complete(
    candles: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storing failed; then asking failed, and the ledger is told of that."""
    candles.execute(_FAIL_ONCE.replace("= 1 THEN", "> 0 THEN"))
    assert not candles.run(*SPAN, may_fail=True).success
    monkeypatch.setattr(Collection, "run", dies)
    assert not candles.run(*SPAN, may_fail=True).success
    assert stored(candles) == set()
    assert candles.rows("SELECT DISTINCT complete FROM candle_partitions") == [(False,)]


def test_a_file_that_cannot_be_read_costs_only_its_own_day(candles: Pipeline) -> None:
    """The others of its range are on record all the same, so that the sensor finds them."""
    assert candles.run(*SPAN).success
    candles.execute("DELETE FROM candle_partitions")
    files = sorted((candles.settings.home / "lake" / "raw").rglob("*.parquet"))
    assert len(files) == DAYS
    files[2].write_bytes(b"not Parquet")
    assert not candles.run(*SPAN, may_fail=True).success
    days = {day for (day,) in candles.rows("SELECT partition_date FROM candle_partitions")}
    assert days == {FIRST + timedelta(number) for number in range(DAYS) if number != 2}


def test_no_frame_outlives_its_day(candles: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month of frames that wait for their steps would be a month in memory."""
    frames: list[weakref.ref[pd.DataFrame]] = []
    validate = validating.validate

    def seen(observations: pd.DataFrame, *, day: date) -> Validation:
        verdict = validate(observations, day=day)
        frames.extend(map(weakref.ref, (observations, verdict.candles)))
        return verdict

    alive: list[int] = []
    take = DoneAhead.take

    def taken(done: DoneAhead, run_id: str, step: str, partitions: Sequence[Partition]) -> Any:
        found = take(done, run_id, step, partitions)
        if step == STORED:  # all days are stored, and none is looked at by its checks yet
            gc.collect()
            alive.append(sum(frame() is not None for frame in frames))
        return found

    monkeypatch.setattr(validating, "validate", seen)
    monkeypatch.setattr(DoneAhead, "take", taken)
    assert candles.run(*SPAN).success
    assert len(frames) == 2 * DAYS
    (left,) = alive
    assert left <= 2  # of the last day, whose table is being looked at
