"""Hostile answers, made from good ones: a function of a seed, in the shapes of real exchanges."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

#: Where the letters t o h l c v stand in a row, and what does not count (x).
ORDERS: Final = {
    "binance": "tohlcvxxxxxx",
    "kraken": "tohlcxvx",
    "coinbaseexchange": "tlhocv",
    "gemini": "tohlcv",
    "bitfinex": "tochlv",
    "coinbase": "tlhocv",
}
SECONDS: Final = frozenset({"kraken", "coinbaseexchange", "coinbase"})
AS_TEXT: Final = frozenset({"binance", "kraken", "coinbase"})
#: coinbase names its columns.
NAMES: Final = {"t": "start", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}

_MAX = 1.7976931348623157e308
_TEXTS: Final = (
    "", " ", "abc", "NaN", "nan", "inf", "-inf", "Infinity", "1_000", " 1", "1 ", "1,5", "+1.5",
    "-1.5", ".5", "5.", ".", "1e5", "1E-5", "1e400", "-1e400", "1e-400", "e5", "0x10", "0b1", "1e",
    "--1", "\u0661\u0662\u0663", "\uff11\uff12", "\u0967", "\u00b2", "1\u0000", "\u0000", "null",
    "true", "\ud800", "1\udfff", "\U0001f4b0", "\u202e1", "1\u200b", "0", "-0", "00012.50", "4.9e-324",
    "0.1000000000000000055511151231257827", "123456789012345678901234567890", "9" * 400,
    "0." + "0" * 320 + "1", "2.2250738585072011e-308", "1.7976931348623159e308", "x" * 3_000,
    "1\n", "'; DROP TABLE candles; --", "1.5\u0301", "\\u0000",
)  # fmt: skip
_NUMBERS: Final = (
    0, -0.0, -1, 1, -1e-300, 5e-324, 2.5e-310, _MAX, -_MAX, 1e308, 2**53, 2**53 + 1, 2**63 - 1,
    2**63, 2**64, 2**64 - 1, -(2**63), 10**25, 10**400, 0.1, 1e-8, 1.0000000000000002,
    float("nan"), float("inf"), float("-inf"), 123456789.123456789,
)  # fmt: skip
_TIMES: Final = (
    0, -1, -60_000, 1, 59_999, 60_000, 253_402_300_799_999, 253_402_300_800_000, 10**15, 2**63 - 1,
    2**63, -(2**63), 2**64, 10**30, 1.5, 1e300, -62_135_596_800_000, 4_102_444_800_000,
)  # fmt: skip
_ODD: Final[tuple[Any, ...]] = (
    None, True, False, [], [[]], {}, {"a": 1}, [1, 2], [None], [[[[[[[[1]]]]]]]], {"": {"": []}},
    ["1", ["2"]], [[0] * 50], {"open": "1"},
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An answer to a window.

    Attributes:
        body: as it comes off the wire.
        rows: as the oracle's decoder reads it; None where the whole answer was spoiled.
        as_objects: hand over Python objects instead of the body.
    """

    body: str
    rows: list[Any] | None
    as_objects: bool


class Maker:
    """Makes answers of one exchange.

    Args:
        exchange: a key of :data:`ORDERS`.
        chance: where all chance comes from.
    """

    def __init__(self, exchange: str, chance: random.Random) -> None:
        self.exchange = exchange
        self._order = ORDERS[exchange]
        self._unit = 1_000 if exchange in SECONDS else 1
        self._text = exchange in AS_TEXT
        self._chance = chance
        self._last: list[Any] = []

    def made(self, start: int, end: int, length: int, now: int) -> Made:
        """An answer to the window ``[start, end)`` of candles of this length, given at ``now``."""
        chance = self._chance
        opens = range(start, min(end, now // length * length + length), length)
        rows = [self._row(time) for time in opens if chance.random() < 0.9]
        if self.exchange == "coinbaseexchange":
            rows.reverse()
        if chance.random() < 0.65:
            for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
                rows = self._spoiled(rows, start, end, length, now)
        self._last = rows or self._last
        spot = chance.random()
        if spot < 0.03:
            return Made(self._broken_body(rows), None, as_objects=False)
        as_objects = spot < 0.25
        body = "" if as_objects else self._body(rows)
        return Made(body, rows, as_objects=as_objects)

    def _row(self, time: int) -> Any:
        chance = self._chance
        digits = chance.choice((2, 4, 8, 17))
        low = round(10 ** chance.uniform(-6, 5), digits) or 0.5
        span = low * chance.choice((0, 0.001, 0.5))
        opened, closed = low + span * chance.random(), low + span * chance.random()
        high = max(opened, closed, low + span)
        volume = chance.choice((0.0, 1.0, chance.random() * 1e6, 5e-324))
        values: dict[str, Any] = {"o": opened, "h": high, "l": low, "c": closed, "v": volume}
        if chance.random() < 0.05:
            values = dict.fromkeys("ohlcv", chance.choice((1, 7, 10**15)))
        if self._text:
            values = {name: repr(value) for name, value in values.items()}
        values["t"] = time // self._unit
        if self.exchange == "coinbase":
            return {NAMES[letter]: str(values[letter]) for letter in self._order}
        return [values.get(letter, "0" if self._text else 0) for letter in self._order]

    def _spoiled(  # noqa: C901 - as many ways as there are
        self, rows: list[Any], start: int, end: int, length: int, now: int
    ) -> list[Any]:
        chance = self._chance
        kind = chance.randrange(16)
        rows = list(rows)
        at = chance.randrange(len(rows)) if rows else 0
        if kind < 6 and rows:
            rows[at] = self._with_cell(rows[at])
        elif kind == 6:
            rows.insert(at, self._odd())
        elif kind == 7:
            times = (*_TIMES, now + 3_000, now + 6_000, now + 86_400_000, start - length, end,
                     start + 7, start - 86_400_000, now // length * length, start, start)  # fmt: skip
            rows.insert(at, self._timed(self._row(start), chance.choice(times)))
        elif kind == 8 and rows:
            rows.insert(chance.randrange(len(rows) + 1), rows[at])
        elif kind == 9 and rows:
            rows.insert(chance.randrange(len(rows) + 1), self._same_time(rows[at], start))
        elif kind == 10:
            chance.shuffle(rows)
        elif kind == 11 and rows:
            rows[at] = self._other_width(rows[at])
        elif kind == 12:
            other = chance.choice(list(ORDERS))
            rows.insert(at, Maker(other, chance)._row(chance.choice((start, end - length))))
        elif kind == 13:
            rows += self._last[:6]
        elif kind == 14:
            rows = [chance.choice((rows, [], [[]], [None] * 3, [rows], [{}], rows * 3))][0]
        elif rows:
            rows[at] = self._swapped(rows[at])
        return list(rows)

    def _value(self) -> Any:
        chance = self._chance
        pool = chance.choice((_TEXTS, _NUMBERS, _NUMBERS, _ODD, _TIMES))
        value = chance.choice(pool)
        return str(value) if chance.random() < 0.1 and not isinstance(value, str) else value

    def _odd(self) -> Any:
        return self._chance.choice((*_ODD, *_TEXTS, *_NUMBERS, [None] * 6, ["1"] * 6, [1] * 6))

    def _with_cell(self, row: Any) -> Any:
        chance = self._chance
        if isinstance(row, dict) and row:
            return {**row, chance.choice(list(row)): self._value()}
        if isinstance(row, list) and row:
            row = list(row)
            row[chance.randrange(len(row))] = self._value()
        return row

    def _timed(self, row: Any, time: Any) -> Any:
        if self._unit > 1 and isinstance(time, int):
            time = time / self._unit if time % self._unit else time // self._unit
        if isinstance(row, dict):
            return {**row, "start": str(time) if self._chance.random() < 0.8 else time}
        return [time, *row[1:]]

    def _same_time(self, row: Any, start: int) -> Any:
        """Another row for the same candle."""
        other = self._row(start)
        if isinstance(row, dict) and isinstance(other, dict):
            return {**other, "start": row.get("start")}
        mixed = isinstance(row, list) and row and isinstance(other, list)
        return [row[0], *other[1:]] if mixed else other

    def _other_width(self, row: Any) -> Any:
        chance = self._chance
        if isinstance(row, dict):
            return {k: v for k, v in row.items() if chance.random() < 0.7} | {"more": 1}
        if not isinstance(row, list):
            return row
        cut = chance.randrange(len(row) + 1)
        return chance.choice((row[:cut], row + [self._value()] * cut, row[1:], row[cut:]))

    def _swapped(self, row: Any) -> Any:
        """Two columns of the row change places."""
        chance = self._chance
        if isinstance(row, dict) and row:
            one, two = chance.choice(list(row)), chance.choice(list(row))
            return {**row, one: row[two], two: row[one]}
        if isinstance(row, list) and row:
            row = list(row)
            one, two = chance.randrange(len(row)), chance.randrange(len(row))
            row[one], row[two] = row[two], row[one]
        return row

    def _enclosed(self, rows: Any) -> Any:
        if self.exchange == "kraken":
            return {"error": [], "result": {"BTCUSD": rows, "last": 1}}
        return {"candles": rows} if self.exchange == "coinbase" else rows

    def _body(self, rows: list[Any]) -> str:
        return json.dumps(self._enclosed(rows), ensure_ascii=self._chance.random() < 0.5)

    def _broken_body(self, rows: list[Any]) -> str:
        """A body that is wrong as a whole."""
        chance = self._chance
        body = self._body(rows)
        cut = chance.randrange(len(body) + 1)
        ways: tuple[Callable[[], str], ...] = (
            lambda: body[:cut],
            lambda: body[cut:],
            lambda: body[:cut] + chance.choice('[]{},:"\\\0x\ufeff') + body[cut:],
            lambda: body.replace("[", "{"),
            lambda: json.dumps(chance.choice((*_ODD, *_TEXTS, *_NUMBERS))),
            lambda: json.dumps({"error": ["EGeneral:Internal error"], "result": {}}),
            lambda: json.dumps({"error": [], "result": {"ETHUSD": rows, "last": 0}}),
            lambda: json.dumps({"result": rows}),
            lambda: json.dumps({"candles": {"0": rows}}),
            lambda: "[" * chance.randrange(3_000) + "]" * chance.randrange(3_000),
            lambda: body * 2,
            lambda: chance.choice(("", "null", "<html></html>", "[", "{}", "0", "\ufeff[]", "[,]")),
            lambda: "\ufeff" + body,
        )  # fmt: skip
        return chance.choice(ways)()
