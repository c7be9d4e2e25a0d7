"""Kraken's Trades: pages of 1,000, walked by a cursor in nanoseconds.

``since`` is exclusive; ``last`` of one answer is ``since`` of the next. Without ``since`` the
newest trades come. A ``since`` in seconds is understood too, as by Kraken.
"""

from __future__ import annotations

from collections.abc import Mapping

from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.simulator.truth import Series
from crypto_pipeline.simulator.truth.trades import TradeColumns
from crypto_pipeline.simulator.wire import Answer

_MOST = 1_000
_NS_IF_ABOVE = 10**12  # smaller numbers are seconds
_CHUNK_MS = 360 * MINUTE_MS


def page(params: Mapping[str, str], pair: str, series: Series, now_ms: float) -> Answer:
    """Trades after the cursor that have happened by now.

    Raises:
        ValueError: a parameter is not a number.
    """
    count = min(int(params.get("count", _MOST)), _MOST)
    if "since" in params:
        since_ns = _nanoseconds(params["since"])
        trades = _after(series, since_ns, now_ms, count)
    else:
        since_ns = 0
        trades = _newest(series, now_ms, count)
    last = int(trades.time_us[-1]) * 1_000 if len(trades.id) else since_ns
    decimals = series.source.price_decimals
    rows = [
        [
            f"{price:.{decimals}f}",
            f"{amount:.8f}",
            time_us / 1e6,
            "b" if buy else "s",
            "m" if trade_id % 2 else "l",
            "",
            trade_id,
        ]
        for time_us, price, amount, buy, trade_id in zip(
            *(column.tolist() for column in trades), strict=True
        )
    ]
    return Answer.json({"error": [], "result": {pair: rows, "last": str(last)}})


def _nanoseconds(text: str) -> int:
    number = float(text)
    return int(text) if number > _NS_IF_ABOVE else round(number * 1e9)


def _after(series: Series, since_ns: int, now_ms: float, count: int) -> TradeColumns:
    listed, delisted = series.source.span
    start = max(since_ns // 1_000_000 // MINUTE_MS * MINUTE_MS, listed)
    end = min(int(now_ms) + MINUTE_MS, delisted)
    reach = _CHUNK_MS
    while True:
        found = series.trades(start, min(start + reach, end))
        found = found.take((found.time_us * 1_000 > since_ns) & (found.time_us <= now_ms * 1_000))
        if len(found.id) >= count or start + reach >= end:
            return found.take(slice(count))
        reach *= 4


def _newest(series: Series, now_ms: float, count: int) -> TradeColumns:
    listed, delisted = series.source.span
    end = min(int(now_ms) // MINUTE_MS * MINUTE_MS + MINUTE_MS, delisted)
    reach = _CHUNK_MS
    while True:
        start = max(end - reach, listed)
        found = series.trades(start, end)
        found = found.take(found.time_us <= now_ms * 1_000)
        if len(found.id) >= count or start <= listed:
            return found.take(slice(max(0, len(found.id) - count), None))
        reach *= 4
