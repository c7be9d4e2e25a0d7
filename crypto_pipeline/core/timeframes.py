"""Timeframes and UTC days, in integers of milliseconds.

A timeframe is ccxt's string (``1m``, ``4h``); only those that divide a UTC day are candles of a
daily partition, so ``1w`` and ``1M`` do not belong here.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

MINUTE_MS = 60_000
DAY_MS = 86_400_000

_UNIT_MS = {"s": 1_000, "m": MINUTE_MS, "h": 3_600_000, "d": DAY_MS}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMEFRAME = re.compile(r"([1-9][0-9]{0,4})([smhd])")


def timeframe_ms(timeframe: str) -> int:
    """Length of a candle in milliseconds.

    Raises:
        ValueError: not a timeframe, or one that does not divide a UTC day.
    """
    match = _TIMEFRAME.fullmatch(timeframe)
    if match is None:
        raise ValueError(f"{timeframe!r} is not a timeframe (examples: 1m, 15m, 4h, 1d)")
    length = int(match[1]) * _UNIT_MS[match[2]]
    if DAY_MS % length:
        raise ValueError(f"{timeframe!r} does not divide a UTC day, so no daily partition holds it")
    return length


def day_start_ms(day: date) -> int:
    """Unix time in milliseconds of a UTC day's first instant."""
    return (day - date(1970, 1, 1)).days * DAY_MS


def day_of(time_ms: int) -> date:
    """The UTC day an instant falls in."""
    return date.fromordinal(date(1970, 1, 1).toordinal() + time_ms // DAY_MS)


def utc(time_ms: int) -> datetime:
    """An instant as an aware datetime."""
    return _EPOCH + timedelta(milliseconds=time_ms)


def to_ms(time: datetime) -> int:
    """Unix time in milliseconds of an aware datetime.

    Raises:
        ValueError: the datetime is naive, so nobody knows which instant it means.
    """
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no time zone")
    return (time - _EPOCH) // timedelta(milliseconds=1)
