"""Silence across midnight: proven by the neighbour's candles, whoever fetched them and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage
from crypto_pipeline.core.holes import CONFIRMATIONS, Hole
from crypto_pipeline.core.intervals import union
from crypto_pipeline.corridor.bridging import bridge_days
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone
from crypto_pipeline_tests.core.builders import DAY, at, minutes, observations, span

BTC, ETH = Series("BTC/USDT", "1m"), Series("ETH/USDT", "1m")
DAYS = [DAY + timedelta(days=n) for n in range(4)]

KINDS = {"s": "silent", "e": "empty", "E": "empty", "f": "failed", "r": "rejected"}


class Store(RawZone):
    """A raw zone on disk, which notes the partitions that were written."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LakeStorage(str(folder)), lambda exchange, day: nullcontext())
        self.written: list[date] = []

    def update(
        self, exchange: str, day: date, change: Callable[[RawPartition], RawPartition]
    ) -> RawPartition:
        self.written.append(day)
        return super().update(exchange, day, change)

    def put(self, days: Mapping[date, Mapping[Series, str]]) -> dict[date, Coverage]:
        """Partitions, each series' day as twelve letters of two hours each; see ``known``."""
        made = {
            day: Coverage({series: known(text, DAYS.index(day)) for series, text in each.items()})
            for day, each in days.items()
        }
        for day, coverage in made.items():
            partition = RawPartition(observations({"open_time": at(1)}), coverage)
            self.update("coinbase", day, lambda before, partition=partition: partition)
        self.written.clear()
        return made

    def settled(self, day: date, series: Series = BTC) -> str:
        found = minutes(self.summary("coinbase", day).coverage.of(series).settled)
        first = DAYS.index(day) * 1_440
        return "".join("c" if first + 120 * n in found else "." for n in range(12))


def known(text: str, day: int) -> SeriesCoverage:
    """c settled, s silent, e empty once, E empty three times, f failed, r rejected, . unasked."""
    runs = [(state, len(list(same))) for state, same in groupby(text)]
    settled, found, start = [], [], day * 1_440
    for state, length in runs:
        part = span(start, start + 120 * length)
        start += 120 * length
        if state == "c":
            settled.append(part)
        if state in KINDS:
            found.append(
                Hole(
                    start=part.start,
                    end=part.end,
                    kind=KINDS[state],  # type: ignore[arg-type]
                    first_seen=0,
                    at=0,
                    attempts=CONFIRMATIONS if state == "E" else 1,
                )
            )
    return SeriesCoverage(settled=union(settled), holes=tuple(found))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def bridge(
    store: Store,
    after: Mapping[date, Coverage],
    *,
    before: Mapping[date, Coverage] | None = None,
    series: tuple[Series, ...] = (BTC, ETH),
) -> None:
    bridge_days(store, "coinbase", series, before=before or {}, after=after)


def test_tomorrow_s_first_candle_proves_today_s_last_minutes(store: Store) -> None:
    """The tick after midnight runs over the new day only: yesterday's file is settled by it."""
    days = store.put({DAYS[0]: {BTC: "ccccccccccss"}, DAYS[1]: {BTC: "cc.........."}})
    bridge(store, {DAYS[1]: days[DAYS[1]]})
    assert store.settled(DAYS[0]) == "c" * 12
    assert store.written == [DAYS[0]]
    assert store.summary("coinbase", DAYS[0]).coverage.of(BTC).holes == ()


def test_yesterday_s_last_candle_proves_today_s_first_minutes(store: Store) -> None:
    """Also where both edges are quiet."""
    days = store.put({DAYS[0]: {BTC: "cccccccccccs"}, DAYS[1]: {BTC: "ssc........."}})
    bridge(store, {DAYS[1]: days[DAYS[1]]})
    assert (store.settled(DAYS[0]), store.settled(DAYS[1])) == ("c" * 12, "ccc.........")


def test_a_healed_day_looks_at_tomorrow(store: Store) -> None:
    """A run over yesterday alone: what proves its end was stored by the ticks since."""
    days = store.put({DAYS[0]: {BTC: "cccccccccccs"}, DAYS[1]: {BTC: "c..........."}})
    bridge(store, {DAYS[0]: days[DAYS[0]]})
    assert store.settled(DAYS[0]) == "c" * 12


def test_a_whole_day_without_a_trade_is_proven_between_its_neighbours(store: Store) -> None:
    """A backfill's range holds all three."""
    texts = ["cccccccccccs", "EEEEEEEEEEEE", "sccccccccccc"]
    days = store.put({day: {BTC: text} for day, text in zip(DAYS, texts, strict=False)})
    bridge(store, days)
    assert [store.settled(day) for day in DAYS[:3]] == ["c" * 12] * 3


@pytest.mark.parametrize("edge", ["e", "f", "r", "."])
def test_midnight_is_not_bridged_over_what_is_no_proof(store: Store, edge: str) -> None:
    """An unconfirmed empty answer, a failure, a refused row, nothing asked at all."""
    days = store.put({DAYS[0]: {BTC: "ccccccccccs" + edge}, DAYS[1]: {BTC: "sc.........."}})
    bridge(store, days)
    assert (store.settled(DAYS[0]), store.settled(DAYS[1])) == (
        "ccccccccccc."[:10] + "..",
        ".c..........",
    )
    assert store.written == []


def test_a_day_that_is_missing_is_a_break(store: Store) -> None:
    """Nobody asked for the day between."""
    days = store.put({DAYS[0]: {BTC: "cccccccccccs"}, DAYS[2]: {BTC: "sccccccccccc"}})
    bridge(store, days)
    assert store.written == []


def test_a_minute_tick_reads_no_other_day(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Yesterday's file is read when the day's first candle comes, not 1,439 times more."""
    days = store.put({DAYS[0]: {BTC: "cccccccccccc"}, DAYS[1]: {BTC: "ccs........."}})
    monkeypatch.setattr(store, "summary", None)
    bridge(store, {DAYS[1]: days[DAYS[1]]}, before={DAYS[1]: days[DAYS[1]]})
    assert store.written == []


def test_one_symbol_s_candles_prove_nothing_for_another(store: Store) -> None:
    """And a series that is no longer configured is left alone."""
    days = store.put(
        {
            DAYS[0]: {BTC: "cccccccccccs", ETH: "cccccccccccs"},
            DAYS[1]: {BTC: "c...........", ETH: "............"},
        }
    )
    bridge(store, days)
    assert (store.settled(DAYS[0], BTC), store.settled(DAYS[0], ETH)) == ("c" * 12, "c" * 11 + ".")
    store.put({DAYS[0]: {BTC: "cccccccccccs"}})
    bridge(store, {DAYS[1]: days[DAYS[1]]}, series=(ETH,))
    assert store.settled(DAYS[0]) == "c" * 11 + "."


def test_what_another_run_wrote_meanwhile_is_kept(store: Store) -> None:
    """The proof is added to the partition as it stands under its lock, but to no hole made since."""
    days = store.put({DAYS[0]: {BTC: "ccccccccccss"}, DAYS[1]: {BTC: "cc.........."}})
    store.put({DAYS[0]: {BTC: "rccccccccccs", ETH: "c" * 12}})
    bridge(store, days)
    assert store.settled(DAYS[0]) == "." + "c" * 11
    assert store.settled(DAYS[0], ETH) == "c" * 12
    assert len(store.read("coinbase", DAYS[0]).observations) == 1


@given(
    texts=st.lists(st.text("cccssEEefr.", min_size=12, max_size=12), min_size=3, max_size=4),
    ran=st.sets(st.integers(0, 3), min_size=1),
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_settled_without_candles_on_both_sides(
    store: Store, texts: list[str], ran: set[int]
) -> None:
    """Whatever partitions a run had: what it settles is enclosed over all days, and what was
    settled stays so; a run over all of them settles all there is to prove."""
    made = store.put({day: {BTC: text} for day, text in zip(DAYS, texts, strict=False)})
    after = {DAYS[n]: made[DAYS[n]] for n in sorted(ran) if n < len(texts)}
    bridge(store, after)
    whole = "".join(texts)

    def enclosed(n: int) -> bool:
        left, right = n, n
        while left >= 0 and whole[left] in "sE":
            left -= 1
        while right < len(whole) and whole[right] in "sE":
            right += 1
        return left >= 0 and right < len(whole) and whole[left] == whole[right] == "c"

    provable = "".join("c" if enclosed(n) else "." for n in range(len(whole)))
    settled = "".join(store.settled(day) for day in DAYS[: len(texts)])
    for n, state in enumerate(settled):
        assert state == "." or provable[n] == "c"
        assert state == "c" or whole[n] != "c"
    if len(after) == len(texts):
        assert settled == provable


def test_one_symbol_s_open_edge_does_not_hide_another_s_candle(store: Store) -> None:
    """AAA's first answer was empty, BTC's first candle came: yesterday's end of BTC is proven."""
    other = Series("AAA/USDT", "1m")
    days = store.put(
        {
            DAYS[0]: {other: "cccccccccccc", BTC: "cccccccccccs"},
            DAYS[1]: {other: "ec..........", BTC: "c..........."},
        }
    )
    bridge(store, {DAYS[1]: days[DAYS[1]]}, series=(other, BTC))
    assert store.settled(DAYS[0]) == "c" * 12


def test_a_first_silence_of_several_holes_waits_for_yesterday_too(store: Store) -> None:
    """Minutes asked about a different number of times are different holes."""
    days = store.put({DAYS[0]: {BTC: "cccccccccccc"}, DAYS[1]: {BTC: "sEc........."}})
    bridge(store, {DAYS[1]: days[DAYS[1]]}, before={DAYS[1]: Coverage()})
    assert store.settled(DAYS[1]) == "ccc........."
