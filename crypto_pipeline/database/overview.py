"""What there is, for people: each series' bounds and counts, and what each budget did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from crypto_pipeline.database.failures import database_errors
from crypto_pipeline.database.statements import table_name
from crypto_pipeline.database.tables import CANDLES, REQUEST_BUDGETS

#: One index probe for each end and one index range for the count; never a scan of the table.
_OVERVIEW: Final = sql.SQL(
    "SELECT s.symbol, s.timeframe, f.open_time, l.open_time,"
    " (SELECT count(*) FROM {candles} c WHERE c.exchange = %(exchange)s"
    "  AND c.symbol = s.symbol AND c.timeframe = s.timeframe)"
    " FROM unnest(%(symbols)s::text[], %(timeframes)s::text[]) AS s(symbol, timeframe)"
    " LEFT JOIN LATERAL (SELECT open_time FROM {candles} c WHERE c.exchange = %(exchange)s"
    "  AND c.symbol = s.symbol AND c.timeframe = s.timeframe ORDER BY open_time LIMIT 1) f ON true"
    " LEFT JOIN LATERAL (SELECT open_time FROM {candles} c WHERE c.exchange = %(exchange)s"
    "  AND c.symbol = s.symbol AND c.timeframe = s.timeframe ORDER BY open_time DESC LIMIT 1) l"
    "  ON true"
).format(candles=table_name(CANDLES))

_WITH_CANDLES: Final = sql.SQL(
    "SELECT name FROM unnest(%(exchanges)s::text[]) AS name"
    " WHERE EXISTS (SELECT FROM {} AS c WHERE c.exchange = name)"
).format(table_name(CANDLES))

_BUDGETS: Final = sql.SQL(
    "SELECT name, requests, waited_seconds, refused, bans,"
    " CASE WHEN blocked_until > clock_timestamp() THEN blocked_until END FROM {}"
    " WHERE name = ANY(%(names)s)"
).format(table_name(REQUEST_BUDGETS))


@dataclass(frozen=True, kw_only=True)
class SeriesOverview:
    """What is stored of one series; times are open times, None where nothing is."""

    symbol: str
    timeframe: str
    first: datetime | None
    last: datetime | None
    candles: int


@dataclass(frozen=True)
class BudgetOverview:
    """What a request budget did since it was first used; ``blocked_until`` None if it is open."""

    requests: int = 0
    waited_seconds: float = 0.0
    refused: int = 0
    bans: int = 0
    blocked_until: datetime | None = None


def series_overview(
    conn: psycopg.Connection, *, exchange: str, series: Iterable[tuple[str, str]]
) -> list[SeriesOverview]:
    """First and last candle and the number of candles of each ``(symbol, timeframe)``.

    Raises:
        DatabaseError: the database is away.
    """
    wanted = list(series)
    scope = {
        "exchange": exchange,
        "symbols": [symbol for symbol, _ in wanted],
        "timeframes": [timeframe for _, timeframe in wanted],
    }
    with database_errors(conn, f"look at the series of {exchange!r}"):
        rows = conn.execute(_OVERVIEW, scope).fetchall()
    return [
        SeriesOverview(symbol=symbol, timeframe=timeframe, first=first, last=last, candles=count)
        for symbol, timeframe, first, last, count in rows
    ]


def exchanges_with_candles(conn: psycopg.Connection, exchanges: Sequence[str]) -> set[str]:
    """Those of the exchanges of which any candle is stored."""
    with database_errors(conn, "look for candles"):
        rows = conn.execute(_WITH_CANDLES, {"exchanges": list(exchanges)}).fetchall()
    return {name for (name,) in rows}


def budget_overview(conn: psycopg.Connection, names: Iterable[str]) -> dict[str, BudgetOverview]:
    """What the budgets of these names did; zeros for one that was never used.

    Raises:
        DatabaseError: the database is away.
    """
    wanted = list(names)
    with database_errors(conn, "look at the request budgets"):
        rows = conn.execute(_BUDGETS, {"names": wanted}).fetchall()
    found = {name: BudgetOverview(*figures) for name, *figures in rows}
    return {name: found.get(name, BudgetOverview()) for name in wanted}
