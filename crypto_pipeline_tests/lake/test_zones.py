"""The raw and the validated zone: partitions as files, updated by several processes at once."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
import pytest

from crypto_pipeline.core.answers import Answer, observations_of
from crypto_pipeline.core.candles import as_candles, empty_observations
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.observations import merge
from crypto_pipeline.core.rows import CCXT_LAYOUT
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.errors import DatabaseError, LakeError
from crypto_pipeline.lake.parquet import to_parquet
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone, ValidatedZone

DAY = date(2024, 3, 15)
START = day_start_ms(DAY)
SERIES = Series("BTC/USDT", "1m")


def observed(minute: int, *, symbol: str = "BTC/USDT", count: int = 1) -> pd.DataFrame:
    window = Interval(START + minute * MINUTE_MS, START + (minute + count) * MINUTE_MS)
    answer = Answer(
        symbol=symbol,
        timeframe="1m",
        window=window,
        rows=[[time, 1.0, 2.0, 0.5, 1.5, 10.0 + minute] for time in range(*window, MINUTE_MS)],
        layout=CCXT_LAYOUT,
        fetched_at=START + DAY_MS,
        clock_offset_ms=0,
    )
    return observations_of(answer, run_id="r", settle_ms=0)


def added(before: RawPartition, minute: int) -> RawPartition:
    """The partition after the answer to one minute."""
    window = Interval(START + minute * MINUTE_MS, START + (minute + 1) * MINUTE_MS)
    known = before.coverage.of(SERIES).settle([window])
    return RawPartition(
        merge(before.observations, observed(minute)), before.coverage.updated(SERIES, known)
    )


def zone(storage: LakeStorage) -> RawZone:
    return RawZone(storage, lambda exchange, day: nullcontext())


@pytest.fixture(params=["path", "memory://"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> LakeStorage:
    local = request.param == "path"
    return LakeStorage(str(tmp_path / "lake") if local else f"memory://{tmp_path.name}")


def test_a_partition_that_was_never_asked_for_is_empty(storage: LakeStorage) -> None:
    """ "Never asked" is a state like any other."""
    partition = zone(storage).read("binance", DAY)
    assert partition.observations.empty
    assert partition.coverage == Coverage()
    assert ValidatedZone(storage).read("binance", DAY) is None


def test_observations_and_coverage_come_back_together(storage: LakeStorage) -> None:
    """They stand in one file, so that the two cannot disagree."""
    known = Coverage().updated(
        SERIES,
        Coverage()
        .of(SERIES)
        .settle([Interval(START, START + MINUTE_MS)])
        .failed(Interval(START + MINUTE_MS, START + DAY_MS), at=7, error="HTTP 503 ‹ü›"),
    )
    written = zone(storage).update("binance", DAY, lambda before: RawPartition(observed(0), known))
    read = zone(storage).read("binance", DAY)
    pd.testing.assert_frame_equal(read.observations, written.observations)
    assert read.coverage == known
    assert zone(storage).read("kraken", DAY).observations.empty
    assert zone(storage).read("binance", date(2024, 3, 16)).observations.empty


def test_rows_can_be_added_to_a_partition_that_had_none(storage: LakeStorage) -> None:
    """A day whose requests all failed, or a quiet one, is stored without rows. What came later
    could not be merged ("dtype of categories must be the same"): the day was broken for good."""
    raw = zone(storage)
    failed = Coverage().of(SERIES).failed(Interval(START, START + DAY_MS), at=7, error="away")
    raw.update(
        "binance",
        DAY,
        lambda before: RawPartition(
            merge(before.observations, empty_observations()),
            before.coverage.updated(SERIES, failed),
        ),
    )
    for minute in (3, 1):
        raw.update("binance", DAY, lambda before, minute=minute: added(before, minute))
    assert len(raw.read("binance", DAY).observations) == 2


def test_an_update_that_fails_leaves_the_partition(storage: LakeStorage) -> None:
    """Whatever goes wrong inside, what was known stays known."""
    raw = zone(storage)
    raw.update("binance", DAY, lambda before: added(before, 0))

    def fails(before: RawPartition) -> RawPartition:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        raw.update("binance", DAY, fails)
    assert len(raw.read("binance", DAY).observations) == 1


def test_a_damaged_partition_is_refused_and_never_overwritten(storage: LakeStorage) -> None:
    """Taking it for empty would ask for everything again, and lose what cannot be asked for."""
    raw = zone(storage)
    raw.update("binance", DAY, lambda before: added(before, 0))
    name = "raw/exchange=binance/date=2024-03-15/candles.parquet"
    for content in (b"", b"PAR1" * 20, (storage.read(name) or b"")[:-5]):
        storage.write(name, content)
        for call in (
            lambda: raw.read("binance", DAY),
            lambda: raw.update("binance", DAY, lambda before: added(before, 1)),
        ):
            with pytest.raises(LakeError, match="move it away") as caught:
                call()
            assert raw.where("binance", DAY) in str(caught.value)
        assert storage.read(name) == content


@pytest.mark.parametrize("note", [None, "", "{}", "[1]", '[{"symbol": "x"}]', "null"])
def test_a_partition_without_readable_coverage_is_refused(
    storage: LakeStorage, note: str | None
) -> None:
    """Rows without the note of what was asked are no raw partition of ours."""
    notes = {} if note is None else {"crypto_pipeline.coverage": note}
    raw = zone(storage)
    raw.update("binance", DAY, lambda before: added(before, 0))
    from crypto_pipeline.core.candles import OBSERVATION_DTYPES

    content = to_parquet(observed(0), OBSERVATION_DTYPES, notes)
    storage.write("raw/exchange=binance/date=2024-03-15/candles.parquet", content)
    if note == "{}":
        assert raw.read("binance", DAY).coverage == Coverage()  # as empty as []
        return
    with pytest.raises(LakeError, match="does not say what was asked for"):
        raw.read("binance", DAY)


def test_validated_candles_are_replaced_as_a_whole(storage: LakeStorage) -> None:
    """A candle that no longer conforms must not survive from the run before."""
    validated = ValidatedZone(storage)
    for count in (5, 2, 0):
        candles = as_candles(observed(0, count=5).head(count))
        validated.write("binance", DAY, candles)
        read = validated.read("binance", DAY)
        assert read is not None
        pd.testing.assert_frame_equal(read, candles, check_categorical=False)
        assert len(read) == count


def test_the_zones_are_hive_partitioned_datasets_for_anybody(tmp_path: Path) -> None:
    """Plain pyarrow reads a zone as one table with exchange and date; leftovers are not in it."""
    storage = LakeStorage(str(tmp_path))
    raw, validated = zone(storage), ValidatedZone(storage)
    for exchange in ("binance", "kraken"):
        for day in (DAY, date(2024, 3, 16)):
            raw.update(exchange, day, lambda before: added(before, 0))
            validated.write(exchange, day, as_candles(observed(0, count=3)))
    folder = tmp_path / "raw/exchange=binance/date=2024-03-15"
    (folder / ".candles.parquet.77ab.tmp").write_bytes(b"half a file")
    for name, rows in (("raw", 1), ("validated", 3)):
        dataset = ds.dataset(tmp_path / name, format="parquet", partitioning="hive")
        table = dataset.to_table()
        assert len(table) == rows * 4
        assert set(table["exchange"].to_pylist()) == {"binance", "kraken"}
        assert set(map(str, table["date"].to_pylist())) == {"2024-03-15", "2024-03-16"}
        kraken = dataset.to_table(filter=ds.field("exchange") == "kraken", columns=["open_time"])
        assert len(kraken) == rows * 2
        assert pd.read_parquet(tmp_path / name)["open"].eq(1.0).all()


_ADDS_MINUTES = """
    import sys
    from crypto_pipeline.database.connection import connect
    from crypto_pipeline.database.locks import raw_partition_lock
    from crypto_pipeline.lake.storage import LakeStorage
    from crypto_pipeline.lake.zones import RawZone
    from crypto_pipeline_tests.lake.test_zones import DAY, added
    lake, url, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with connect(url) as conn:
        zone = RawZone(LakeStorage(lake), lambda *partition: raw_partition_lock(conn, *partition))
        for minute in range(first, first + 10):
            zone.update("binance", DAY, lambda before: added(before, minute))
"""


def test_four_processes_that_update_a_partition_lose_nothing_of_each_other(
    tmp_path: Path, new_database: Callable[[], str]
) -> None:
    """A tick and three backfill runs on today's partition: read, merge, replace is one step."""
    url = new_database()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_ADDS_MINUTES), str(tmp_path), url,
             str(first * 10)]
        )
        for first in range(4)
    ]  # fmt: skip
    assert [process.wait(60) for process in processes] == [0] * 4
    partition = zone(LakeStorage(str(tmp_path))).read("binance", DAY)
    assert len(partition.observations) == 40
    assert partition.coverage.of(SERIES).settled == (Interval(START, START + 40 * MINUTE_MS),)
    expected = observed(0, count=40)
    assert partition.observations["open_time"].tolist() == expected["open_time"].tolist()


def test_the_lock_is_held_around_read_and_write(tmp_path: Path) -> None:
    """What the four processes rest on: nothing is read before the lock is held."""
    events: list[str] = []

    class Noting(LakeStorage):
        def read(self, name: str) -> bytes | None:
            events.append("read")
            return super().read(name)

        def write(self, name: str, content: bytes, **checked: Any) -> None:
            super().write(name, content, **checked)
            events.append("write")

    class Lock(nullcontext[Any]):
        def __enter__(self) -> Any:
            events.append("locked")
            return lambda: events.append("still ours")

        def __exit__(self, *_: object) -> None:
            events.append("unlocked")

    raw = RawZone(Noting(str(tmp_path)), lambda exchange, day: Lock())
    raw.update("binance", DAY, replace)
    assert events == ["locked", "read", "still ours", "write", "unlocked"]


def test_a_lock_that_was_lost_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """The database restarted in the middle of an update: another run may hold the lock now."""

    class Lost(nullcontext[Any]):
        def __enter__(self) -> Any:
            def check() -> None:
                raise DatabaseError("the session is gone")

            return check

    storage = LakeStorage(str(tmp_path))
    zone(storage).update("binance", DAY, lambda before: added(before, 0))
    with pytest.raises(DatabaseError, match="the session is gone"):
        RawZone(storage, lambda exchange, day: Lost()).update("binance", DAY, replace)
    assert len(zone(storage).read("binance", DAY).observations) == 1
    assert list(tmp_path.rglob(".*.tmp")) == []
