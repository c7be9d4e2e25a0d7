"""Answers by the thousand through the whole corridor, into a real lake and a real database.

Parse (the strict layer and the layouts), judge, sort into partitions, merge, validate, store: as a run
does it, in batches as :class:`DayBook` makes them. After each batch everything that came of it is
compared with the oracle.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psycopg

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import Coverage, Series
from crypto_pipeline.core.habits import habits_of
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.observations import merge
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_of, timeframe_ms, utc
from crypto_pipeline.core.validation import validate
from crypto_pipeline.corridor.day_book import DayBook
from crypto_pipeline.database.candle_writer import replace_live_candles, upsert_candles
from crypto_pipeline.database.rejected_writer import record_rejected
from crypto_pipeline.errors import ExchangeError
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone, ValidatedZone
from crypto_pipeline_tests.exchanges.canned import as_sent
from crypto_pipeline_tests.fuzzing.answers import NAMES, ORDERS, SECONDS, Made, Maker
from crypto_pipeline_tests.fuzzing.checking import (
    Broken,
    Tally,
    candles_of,
    conforms,
    difference,
    first_of,
    recorded,
    slots,
)
from crypto_pipeline_tests.fuzzing.layer import SYMBOL, StrictLayer, same_json
from crypto_pipeline_tests.fuzzing.oracle import Asked, Expected, Oracle, Row

LENGTHS: Final = {"1m": MINUTE_MS, "5m": 5 * MINUTE_MS, "1h": 60 * MINUTE_MS}
_QUIET: Final = ("filled", "omitted", "unknown")
_FIRST_DAY: Final = 19_000  # 2022-01-08


class Batch:
    """Some thousand answers of one exchange about a day and the end of the one before."""

    def __init__(
        self, number: int, seed: int, *, layers: dict[str, StrictLayer], lake: Path, answers: int
    ) -> None:
        self.name = f"fuzz-{seed}-{number}"
        chance = self._chance = random.Random(self.name)
        self._layer = layers[chance.choice(list(ORDERS))]
        self._maker = Maker(self._layer.exchange, chance)
        self._habits = habits_of(self._layer.exchange).model_copy(
            update={"quiet": chance.choice(_QUIET), "extra_rows": chance.random() < 0.5}
        )
        self._oracle = Oracle(settle=self._habits.settle_ms, extra_rows=self._habits.extra_rows)
        self._book = DayBook(self._habits, {}, run_id="fuzz")
        storage = LakeStorage(str(lake))
        self._zone = RawZone(storage, lambda *_: nullcontext())
        self._validated = ValidatedZone(storage)
        self._day = _FIRST_DAY + chance.randrange(1_500)
        self._days = (self._day - 1, self._day, self._day + 1)
        self._forming: dict[Any, Any] = {}
        self._now = self._day * DAY_MS + chance.choice((30 * MINUTE_MS, 43_200_000, 86_340_000))
        self._answers = answers
        self._newest: dict[Series, int] = {}
        self._kept: dict[Series, set[int]] = {}
        letters = [ORDERS[self._layer.exchange].index(letter) for letter in "tohlcv"]
        by_name = self._layer.exchange == "coinbase"
        self._columns = [NAMES[letter] for letter in "tohlcv"] if by_name else letters
        self._unit = 1_000 if self._layer.exchange in SECONDS else 1
        self.tally = Tally()
        self._added = 0

    def run(self, conn: psycopg.Connection) -> Tally:
        """All of it.

        Raises:
            Broken: a promise did not hold.
        """
        try:
            return self._run(conn)
        except Broken:
            raise
        except Exception as error:  # whatever leaves breaks the first promise
            raise Broken(f"{self.name}: {type(error).__name__}: {error}") from error

    def _run(self, conn: psycopg.Connection) -> Tally:
        series = [
            Series(f"{base}/USD", timeframe)
            for base in self._chance.sample(("BTC", "ETH", "é", "X" * 20, "1INCH"), 3)
            for timeframe in self._chance.sample(list(LENGTHS), 2)
        ]
        rounds = self._chance.choice((1, 2, 4))
        for _ in range(rounds):
            asked = [
                one
                for _ in range(self._answers // rounds)
                if (one := self._asked(self._chance.choice(series))) is not None
            ]
            self._write(asked)
        for day in self._days:
            self._store(conn, day)
        self._check_live(conn)
        return self.tally

    # Answers

    def _asked(self, series: Series) -> tuple[Answer, Asked] | None:
        chance, length = self._chance, timeframe_ms(series.timeframe)
        self._now += chance.choice((0, 1, 40, 1_000))
        slots = self._now // length
        if chance.random() < 0.2:
            slots -= chance.randrange(max(1, DAY_MS // length // 2))
        start = max(
            slots - chance.choice((0, 1, 2, 3, 5, 20, 40)) - chance.randrange(3),
            (self._day - 1) * DAY_MS // length,
        )
        window = Interval(start * length, (start + chance.choice((1, 2, 3, 3, 8))) * length)
        made = self._maker.made(*window, length, self._now)
        self.tally.answers += 1
        rows = self._decoded(made)
        if rows is None:
            return None
        offset = chance.choice((-700, 0, 0, 300))
        ours = self._now - offset
        read, layout = self._layer.layouts.rows(rows, SYMBOL)
        answer = Answer(
            symbol=series.symbol, timeframe=series.timeframe, window=window, rows=read,
            layout=layout, fetched_at=ours, clock_offset_ms=offset,
        )  # fmt: skip
        # Two answers of a series never carry one time.
        fetched = max(ours, self._newest.get(series, 0) + 1)
        self._newest[series] = fetched
        expected = Asked(
            symbol=series.symbol, timeframe=series.timeframe, length=length, start=window.start,
            end=window.end, rows=as_sent(rows), columns=self._columns, unit=self._unit,
            fetched_at=fetched, now=self._now,
        )  # fmt: skip
        return answer, expected

    def _decoded(self, made: Made) -> list[Any] | None:
        """The rows, or None for a typed refusal of an answer that deserves it."""
        if made.as_objects:
            return made.rows
        try:
            rows = self._layer.rows(made.body)
        except ExchangeError as error:
            if made.rows is not None:
                self._fail(f"refused a whole answer: {error}", made.body)
            self.tally.errors[type(error).__name__] += 1
            return None
        if made.rows is None:
            return rows
        if not same_json(as_sent(rows), made.rows, json.loads(made.body)):
            self._fail("read other rows than were sent", made.body)
        return rows

    # The corridor

    def _write(self, asked: Sequence[tuple[Answer, Asked]]) -> None:
        """What ``Collection`` does with the answers of a while."""
        read: list[list[Row]] = []
        for answer, expected in asked:
            self._book.answer(answer)
            read.append(self._oracle.answer(expected))
        judged = self._book.parse()
        for (_, expected), rows, (answer, judgement) in zip(asked, read, judged, strict=True):
            self._check_judgement(expected, rows, answer, judgement)
        homed = 0
        for number in self._days:
            day = day_of(number * DAY_MS)
            new, findings = self._book.rows(day), self._book.findings(day)
            homed += len(new)

            def change(
                before: RawPartition, new: pd.DataFrame = new, findings: Any = findings
            ) -> RawPartition:
                coverage = before.coverage if findings is None else findings(before.coverage)
                return RawPartition(merge(before.observations, new), coverage)

            if findings is not None or not new.empty:
                self._zone.update(self.name, day, change)
        sent = sum(map(len, read))
        self.tally.rows += sent
        left_out = self._oracle.unasked - self.tally.unasked
        self.tally.unasked = self._oracle.unasked
        if sent != homed + left_out:
            self._fail(f"{sent} rows came, {homed} were kept and {left_out} left out", "")

    def _check_judgement(
        self, asked: Asked, rows: list[Row], answer: Answer, judgement: Judgement
    ) -> None:
        """What an answer settles is what it holds, inside of what was asked."""
        if answer.fetched_at != asked.fetched_at or answer.exchange_now != asked.now:
            self._fail("the answer's time was changed", repr(asked.rows))
        window = set(range(asked.start, asked.end, asked.length))
        before = self._oracle.final_before(asked, rows)
        parts = [slots(each, asked.length) for each in
                 (judgement.settled, judgement.rejected, judgement.silent)]  # fmt: skip
        if sum(map(len, parts)) != len(set().union(*parts)) or set().union(*parts) != {
            slot for slot in window if slot < before
        }:
            self._fail(
                f"what it settles is not what was asked and due: {judgement}", repr(asked.rows)
            )
        good = {
            row.time
            for row in rows
            if row.time in window and row.time < before and conforms(row, asked)
        }
        if not good <= parts[0] or (self._habits.quiet != "omitted" and good != parts[0]):
            self._fail(f"it settles {parts[0]}, but holds {good}", repr(asked.rows))
        for slot in good:
            self._kept.setdefault(Series(asked.symbol, asked.timeframe), set()).add(slot)

    def _store(self, conn: psycopg.Connection, number: int) -> None:
        """What a run does with a partition after it was collected."""
        day, start = day_of(number * DAY_MS), number * DAY_MS
        raw = self._zone.read(self.name, day)
        verdict = validate(raw.observations, day=day)
        self._added += record_rejected(
            conn, verdict.rejected, exchange=self.name, partition_date=day
        )
        self._validated.write(self.name, day, verdict.candles)
        candles = self._validated.read(self.name, day)
        assert candles is not None
        final = candles[candles["final"]]
        window = {"start": utc(start), "end": utc(start + DAY_MS)}
        upsert_candles(conn, final, exchange=self.name, **window)
        replace_live_candles(conn, candles[~candles["final"]], exchange=self.name)
        expected = self._oracle.expected(number, LENGTHS)
        self._check_stored(conn, expected, start)
        self._check_refused(conn, expected, verdict.rejected, day)
        self._check_coverage(raw.coverage, expected, start)
        self.tally.stored += len(expected.candles)
        self.tally.forming += len(expected.forming)
        self.tally.refused += sum(expected.refused.values())
        for (_, _, rule, _), times in expected.refused.items():
            self.tally.rules[rule] += times

    # What the database holds

    def _check_stored(self, conn: psycopg.Connection, expected: Expected, start: int) -> None:
        """Each candle once, bit by bit as it was sent."""
        self._same("candles", candles_of(conn, "candles", self.name, start), expected.candles)
        self._forming |= expected.forming

    def _check_live(self, conn: psycopg.Connection) -> None:
        newest: dict[Any, int] = {}
        for symbol, timeframe, time in self._forming:
            newest[symbol, timeframe] = max(newest.get((symbol, timeframe), 0), time)
        forming = {key: value for key, value in self._forming.items() if newest[key[:2]] == key[2]}
        live: dict[Any, Any] = {}
        for number in self._days:
            live |= candles_of(conn, "live_candles", self.name, number * DAY_MS)
        self._same("live_candles", live, forming)

    def _check_refused(
        self, conn: psycopg.Connection, expected: Expected, rejected: pd.DataFrame, day: date
    ) -> None:
        """Every refused row by name, with what was received; and each recorded."""
        names = [rejected[name].astype(str) for name in ("symbol", "timeframe", "rule", "received")]
        found = Counter(zip(*names, strict=True))
        if found != expected.refused:
            self._fail(
                f"refused otherwise: {first_of(found - expected.refused)} instead of"
                f" {first_of(expected.refused - found)}", ""
            )  # fmt: skip
        kept = recorded(conn, self.name, day)
        if kept != expected.recorded:
            self._fail(
                f"recorded otherwise: {first_of(kept.items() - expected.recorded.items())} instead"
                f" of {first_of(expected.recorded.items() - kept.items())}", ""
            )  # fmt: skip

    def _check_coverage(self, coverage: Coverage, expected: Expected, start: int) -> None:
        """Nothing counts as there that is not stored; what is stored counts as there."""
        if self._habits.quiet != "unknown":
            return  # silence may be proven
        for series, known in coverage.by_series.items():
            settled = slots(known.settled, LENGTHS[series.timeframe])
            kept = {s for s in self._kept.get(series, ()) if start <= s < start + DAY_MS}
            if not settled <= kept:
                self._fail(f"{series} counts as settled at {settled - kept}", "")
            if settled != kept and self._habits.history is None:  # further back proves nothing
                self._fail(f"{series} does not count as settled at {kept - settled}", "")
            stored = {
                key[2] for key in expected.candles if key[:2] == (series.symbol, series.timeframe)
            }
            if not settled <= stored:
                self._fail(f"{series} is not stored at {settled - stored}", "")

    def _same(self, table: str, stored: dict[Any, Any], expected: dict[Any, Any]) -> None:
        differs = difference(table, stored, expected)
        if differs is not None:
            self._fail(differs, "")

    def _fail(self, what: str, answer: str) -> None:
        raise Broken(f"{self.name} ({self._layer.exchange}): {what} {answer[:2_000]}")


def batches(
    answers: int, seed: int, *, conn: psycopg.Connection, lake: Path, size: int = 2_000
) -> Iterator[Tally]:
    """Run so many answers; what came of each batch."""
    layers = {exchange: StrictLayer(exchange) for exchange in ORDERS}
    for number, first in enumerate(range(0, answers, size)):
        batch = Batch(number, seed, layers=layers, lake=lake, answers=min(size, answers - first))
        yield batch.run(conn)
