"""Where each exchange puts the six numbers of a candle row: learned from ccxt's own parser."""

from __future__ import annotations

from typing import Any

from crypto_pipeline.core.answers import CCXT_LAYOUT, Layout


class Layouts:
    """The row layouts of one ccxt exchange, by symbol."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange
        self._known: dict[str, Layout | None] = {}

    def rows(self, rows: list[Any], symbol: str) -> tuple[list[Any], Layout]:
        """The rows and where their numbers stand; converted by ccxt where no layout describes it."""
        if symbol not in self._known:
            self._known[symbol] = self._probed(symbol)
        layout = self._known[symbol]
        if layout is not None and not any(isinstance(row, dict) for row in rows):
            return rows, layout
        return [self._converted(row, symbol) for row in rows], CCXT_LAYOUT

    def _converted(self, row: Any, symbol: str) -> Any:
        try:
            return self._exchange.parse_ohlcv(row, self._exchange.market(symbol))
        except Exception:  # noqa: BLE001 - a row ccxt chokes on is kept as it came, and refused by rule
            return row

    def _probed(self, symbol: str) -> Layout | None:
        """What ccxt's ``parse_ohlcv`` makes of a row of numbers that are all different."""
        probe = [str(101 + index) for index in range(16)]
        parsed = self._converted(probe, symbol)
        try:
            unit = next(
                unit for unit in (1, 1_000) if parsed[0] and str(parsed[0] // unit) in probe
            )
            time_position = probe.index(str(parsed[0] // unit))
            values = [probe.index(str(int(value))) for value in parsed[1:6]]
        except (StopIteration, TypeError, ValueError, IndexError):
            return None
        return Layout((time_position, *values), unit) if len(values) == 5 else None  # type: ignore[arg-type]
