"""Where each exchange puts the six numbers of a candle row: learned from ccxt's own parser.

ccxt itself reads a row too kindly (``True`` is 1, ``1_000`` and another script's digits are numbers)
and shows nothing of what it read, so it converts only where no layout describes the rows.
"""

from __future__ import annotations

from typing import Any

from crypto_pipeline.core.rows import CCXT_LAYOUT, Layout, as_received


class Layouts:
    """The row layouts of one ccxt exchange, by symbol."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self._known: dict[str, tuple[Layout | None, Layout | None]] = {}

    def rows(self, rows: list[Any], symbol: str) -> tuple[list[Any], Layout]:
        """The rows and where their numbers stand; converted by ccxt where no layout describes it."""
        if symbol not in self._known:
            lists = self._probed([str(101 + index) for index in range(16)], symbol)
            self._known[symbol] = lists, self._probed(_AnyName(), symbol)
        lists, objects = self._known[symbol]
        named = bool(rows) and all(isinstance(row, dict) for row in rows)
        if objects is not None and (_any_fits(rows, objects) if named else lists is None):
            return rows, objects
        if lists is not None and not (named and objects):
            return rows, lists
        six = [self._converted(row, symbol) for row in rows]
        if objects is not None and not any(map(_is_whole, six)):
            return rows, objects  # no other names that ccxt knows, either
        return [
            numbers if _is_whole(numbers) else _unread(row)
            for numbers, row in zip(six, rows, strict=True)
        ], CCXT_LAYOUT

    def _converted(self, row: Any, symbol: str) -> Any:
        try:
            return self._exchange.parse_ohlcv(row, self._exchange.market(symbol))
        except Exception:  # noqa: BLE001 - a row ccxt chokes on is kept as it came, and refused by rule
            return row

    def _probed(self, probe: list[str] | _AnyName, symbol: str) -> Layout | None:
        """What ccxt's ``parse_ohlcv`` makes of a row of numbers that are all different."""
        parsed = self._converted(probe, symbol)
        found = (
            probe.given if isinstance(probe, _AnyName) else dict(zip(probe, range(16), strict=True))
        )
        try:
            unit = next(
                unit for unit in (1, 1_000) if parsed[0] and str(parsed[0] // unit) in found
            )
            columns = [found[str(parsed[0] // unit)], *(found[str(int(x))] for x in parsed[1:6])]
        except (StopIteration, TypeError, ValueError, LookupError):
            return None
        kind = str if isinstance(probe, _AnyName) else int
        if len(columns) != 6 or not all(isinstance(column, kind) for column in columns):
            return None
        return Layout(tuple(columns), unit)  # type: ignore[arg-type]


class _AnyName(dict[str, str]):
    """An object that has a number of its own under whatever name is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[str, Any] = {}
        self._numbers: dict[Any, str] = {}

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: Any) -> str:
        number = self._numbers.setdefault(name, str(101 + len(self._numbers)))
        self.given[number] = name
        return number

    def get(self, name: Any, default: Any = None) -> Any:
        del default
        return self[name]


def _is_whole(numbers: object) -> bool:
    return isinstance(numbers, list) and len(numbers) == 6 and None not in numbers


def _unread(row: Any) -> Any:
    """A row to be refused as it came: a list, which could be read by places, as its text."""
    return as_received(row) if isinstance(row, list) else row


def _any_fits(rows: list[Any], layout: Layout) -> bool:
    """Whether a row has all names: some exchanges have more than one set of them."""
    names = set(layout.positions)
    return any(row.keys() >= names for row in rows)
