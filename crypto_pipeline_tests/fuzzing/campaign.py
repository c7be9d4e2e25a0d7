"""Answers by the thousand through the whole corridor, into a real lake and a real database.

Parse (the strict layer and the layouts), judge, sort into partitions, merge, validate, store: as a run
does it, in batches as :class:`DayBook` makes them. After each batch everything that came of it is
compared with the oracle.
"""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

import pandas as pd
import psycopg

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.candles import VALUES
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
from crypto_pipeline.exchanges.failures import told
from crypto_pipeline.exchanges.layouts import Layouts
from crypto_pipeline.exchanges.strict import CURRENT, Exchanged, strict_exchange
from crypto_pipeline.lake.storage import LakeStorage
from crypto_pipeline.lake.zones import RawPartition, RawZone, ValidatedZone
from crypto_pipeline_tests.fuzzing.answers import NAMES, ORDERS, SECONDS, Made, Maker
from crypto_pipeline_tests.fuzzing.oracle import Asked, Expected, Oracle, Row

SYMBOL: Final = "BTC/USD"
LENGTHS: Final = {"1m": MINUTE_MS, "5m": 5 * MINUTE_MS, "1h": 60 * MINUTE_MS}
_QUIET: Final = ("filled", "omitted", "unknown")
_FIRST_DAY: Final = 19_000  # 2022-01-08


class Broken(AssertionError):
    """A promise that did not hold; the message says which, and with what answers it comes again."""


@dataclass
class Tally:
    """What came of the answers."""

    answers: int = 0
    rows: int = 0
    stored: int = 0
    forming: int = 0
    refused: int = 0
    unasked: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Another batch."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class StrictLayer:
    """A genuine ccxt exchange held to strict answers, from the body on."""

    def __init__(self, exchange: str) -> None:
        self.exchange = exchange
        self.ccxt = strict_exchange(exchange, {})
        self.ccxt.set_markets([_market(SYMBOL)])
        self.layouts = Layouts(self.ccxt)

    def rows(self, body: str) -> list[Any]:
        """The rows of a body, as ``ExchangeWrapper.fetch`` gets them.

        Raises:
            ExchangeError: as it would.
        """
        seen = Exchanged()
        token = CURRENT.set(seen)
        failure: ExchangeError | None = None
        try:
            response = self.ccxt.parse_json(body)
            url, method = "http://localhost", "GET"
            self.ccxt.handle_errors(200, "OK", url, method, {}, body, response, None, None)
            self.ccxt.parse_ohlcvs(self._found(response))
        except Exception as error:  # noqa: BLE001 - as asking.Asker does
            failure = told(error, tried="fuzzing", seen=seen, redact=())
        finally:
            CURRENT.reset(token)
        if failure is not None:
            raise failure
        assert seen.rows is not None
        return seen.rows

    def _found(self, response: Any) -> Any:
        """Where ccxt's ``fetch_ohlcv`` takes the rows from, its empty default included."""
        if self.exchange == "kraken":
            return self.ccxt.safe_list(self.ccxt.safe_value(response, "result", {}), "BTCUSD", [])
        return (
            self.ccxt.safe_list(response, "candles", [])
            if self.exchange == "coinbase"
            else response
        )


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
            end=window.end, rows=rows, columns=self._columns, unit=self._unit,
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
        if not _same_json(rows, made.rows, json.loads(made.body)):
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
        parts = [_slots(each, asked.length) for each in
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
            if row.time in window and row.time < before and _conforms(row, asked)
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
        _compare(self, "candles", _candles(conn, "candles", self.name, start), expected.candles)
        self._forming |= expected.forming

    def _check_live(self, conn: psycopg.Connection) -> None:
        newest: dict[Any, int] = {}
        for symbol, timeframe, time in self._forming:
            newest[symbol, timeframe] = max(newest.get((symbol, timeframe), 0), time)
        forming = {key: value for key, value in self._forming.items() if newest[key[:2]] == key[2]}
        live = {}
        for number in self._days:
            live |= _candles(conn, "live_candles", self.name, number * DAY_MS)
        _compare(self, "live_candles", live, forming)

    def _check_refused(
        self, conn: psycopg.Connection, expected: Expected, rejected: pd.DataFrame, day: date
    ) -> None:
        """Every refused row by name, with what was received; and each recorded."""
        names = [rejected[name].astype(str) for name in ("symbol", "timeframe", "rule", "received")]
        found = Counter(zip(*names, strict=True))
        if found != expected.refused:
            self._fail(
                f"refused otherwise: {_first(found - expected.refused)} instead of"
                f" {_first(expected.refused - found)}", ""
            )  # fmt: skip
        query = (
            "SELECT symbol, timeframe, rule, received, count(*) FROM rejected_candles"
            " WHERE exchange = %s AND partition_date = %s GROUP BY 1, 2, 3, 4"
        )
        recorded = {
            tuple(row[:4]): row[4] for row in conn.execute(query, [self.name, day]).fetchall()
        }
        if recorded != expected.recorded:
            self._fail(
                f"recorded otherwise: {_first(recorded.items() - expected.recorded.items())} instead"
                f" of {_first(expected.recorded.items() - recorded.items())}", ""
            )  # fmt: skip

    def _check_coverage(self, coverage: Coverage, expected: Expected, start: int) -> None:
        """Nothing counts as there that is not stored; what is stored counts as there."""
        if self._habits.quiet != "unknown":
            return  # silence may be proven
        for series, known in coverage.by_series.items():
            settled = _slots(known.settled, LENGTHS[series.timeframe])
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

    def _fail(self, what: str, answer: str) -> None:
        raise Broken(f"{self.name} ({self._layer.exchange}): {what} {answer[:2_000]}")


def batches(
    answers: int, seed: int, *, url_connection: psycopg.Connection, lake: Path, size: int = 2_000
) -> Iterator[Tally]:
    """Run so many answers; what came of each batch."""
    layers = {exchange: StrictLayer(exchange) for exchange in ORDERS}
    for number, first in enumerate(range(0, answers, size)):
        batch = Batch(number, seed, layers=layers, lake=lake, answers=min(size, answers - first))
        yield batch.run(url_connection)


def _market(symbol: str) -> dict[str, Any]:
    base, quote = symbol.split("/")
    return {
        "id": base + quote, "symbol": symbol, "base": base, "quote": quote, "baseId": base,
        "quoteId": quote, "type": "spot", "spot": True, "swap": False, "future": False,
        "option": False, "contract": False, "linear": None, "inverse": None, "active": True,
        "precision": {}, "limits": {}, "info": {},
    }  # fmt: skip


def _same_json(rows: list[Any], made: list[Any], body: Any) -> bool:
    """Whether the strict layer's rows are the standard decoder's, numbers taken as floats."""
    while isinstance(body, dict):
        body = next(
            value for name, value in body.items() if name in ("result", "candles", "BTCUSD")
        )
    return _floats(rows) == _floats(body) and len(body) == len(made)


def _floats(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _floats(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_floats(value) for value in node]
    if type(node) in (int, float):
        try:
            return struct.pack(">d", float(node))
        except OverflowError:
            return "huge"
    return node


def _conforms(row: Row, asked: Asked) -> bool:
    from crypto_pipeline_tests.fuzzing.oracle import broken

    assert row.time is not None
    return broken(row, asked.length, asked.now, row.time // DAY_MS * DAY_MS) is None


def _slots(intervals: Any, length: int) -> set[int]:
    return {slot for start, end in intervals for slot in range(start, end, length)}


def _candles(conn: psycopg.Connection, table: str, exchange: str, start: int) -> dict[Any, Any]:
    names = ", ".join(VALUES)
    query = (
        f"SELECT symbol, timeframe, (extract(epoch FROM open_time) * 1000)::bigint, {names},"
        f" (extract(epoch FROM fetched_at) * 1000)::bigint FROM {table}"
        " WHERE exchange = %s AND open_time >= %s AND open_time < %s"
    )
    with conn.cursor(binary=True) as cursor:
        cursor.execute(query, [exchange, utc(start), utc(start + DAY_MS)])
        return {row[:3]: (row[3:8], row[8]) for row in cursor.fetchall()}


def _compare(batch: Batch, table: str, stored: dict[Any, Any], expected: dict[Any, Any]) -> None:
    def bits(entries: dict[Any, Any]) -> dict[Any, Any]:
        return {key: (struct.pack(">5d", *values), at) for key, (values, at) in entries.items()}

    mine, theirs = bits(stored), bits(expected)
    if mine != theirs:
        key = _first(mine.items() ^ theirs.items())[0]
        batch._fail(f"{table} holds {stored.get(key)} for {key}, not {expected.get(key)}", "")


def _first(found: Any) -> Any:
    return next(iter(sorted(map(lambda x: x, found), key=repr)), None)
