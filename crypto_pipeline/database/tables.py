"""The tables, in one place: migrations, SQL and tests all go by this metadata.

The ``CHECK`` constraints repeat the OHLCV rules of :mod:`crypto_pipeline.core.rules`, so that no
other program can store what validation would refuse. In PostgreSQL ``NaN`` is greater than every
number, ``Infinity`` included: ``x > 0`` alone lets both in, ``x < 'Infinity'`` neither.

Names are ordered by their bytes (collation "C"): the order of Python's strings, and one that no
update of the C library can change under an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    event,
    func,
    text,
)

from crypto_pipeline.core.gaps import CAUSES, PROVEN
from crypto_pipeline.database.functions import CANDLES_FILLED, LATEST_CANDLES, TAKE_REQUEST_PLACE

METADATA: Final = MetaData()

PRICES: Final = ("open", "high", "low", "close")
VALUES: Final = (*PRICES, "volume")
SOURCES: Final = ("ohlcv", "trades")

#: Bounds of what ``rejected_candles`` keeps of texts that come from outside, in characters.
RECEIVED_LIMIT: Final = 4_096
MESSAGE_LIMIT: Final = 1_024

#: Bound of a gap's evidence, in characters.
EVIDENCE_LIMIT: Final = 1_024


def _name(name: str) -> Column[str]:
    return Column(name, Text(collation="C"), nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _time(name: str, *, nullable: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable)


def _values(*, nullable: bool = False) -> list[Column[float]]:
    return [Column(name, Double, nullable=nullable) for name in VALUES]


def _ohlcv_rules(table: str) -> list[CheckConstraint]:
    """The rules a candle keeps, each a constraint of its own name."""
    rules = {
        "price_finite": " AND ".join(f"{price} < 'Infinity'" for price in PRICES),
        "price_positive": " AND ".join(f"{price} > 0" for price in PRICES),
        "volume_finite": "volume < 'Infinity'",
        "volume_not_negative": "volume >= 0",
        "high_not_below_low": "high >= low",
        "open_within_range": "open >= low AND open <= high",
        "close_within_range": "close >= low AND close <= high",
    }
    return [CheckConstraint(rule, name=f"{table}_{name}") for name, rule in rules.items()]


def _one_of(column: str, words: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


#: Final candles; a hypertable on ``open_time`` where TimescaleDB is there.
CANDLES: Final = Table(
    "candles",
    METADATA,
    _name("exchange"),
    _name("symbol"),
    _name("timeframe"),
    _time("open_time"),
    *_values(),
    _time("fetched_at"),  # when the exchange answered with these values
    _text("run_id"),  # the run that asked
    _text("source"),
    PrimaryKeyConstraint("exchange", "symbol", "timeframe", "open_time", name="candles_pkey"),
    *_ohlcv_rules("candles"),
    CheckConstraint("source IN ('ohlcv', 'trades')", name="candles_source_known"),
)

#: Every series of which a candle was stored; one more may stand here just before its first candle.
CANDLE_SERIES: Final = Table(
    "candle_series",
    METADATA,
    _name("exchange"),
    _name("symbol"),
    _name("timeframe"),
    PrimaryKeyConstraint("exchange", "symbol", "timeframe", name="candle_series_pkey"),
)

event.listen(METADATA, "after_create", DDL(LATEST_CANDLES))  # type: ignore[no-untyped-call]  # SQLAlchemy's

#: Each hour of a series of 1m, made of its candles and kept with them: a year is read in milliseconds.
CANDLE_HOURS: Final = Table(
    "candle_hours",
    METADATA,
    _name("exchange"),
    _name("symbol"),
    _time("open_time"),
    *_values(),
    Column("minutes", SmallInteger, nullable=False),  # how many of the hour's candles there are
    PrimaryKeyConstraint("exchange", "symbol", "open_time", name="candle_hours_pkey"),
    CheckConstraint("minutes > 0", name="candle_hours_not_empty"),
)

#: The newest forming candle of each series. It stays when its candle closes, until the next tick.
LIVE_CANDLES: Final = Table(
    "live_candles",
    METADATA,
    _name("exchange"),
    _name("symbol"),
    _name("timeframe"),
    _time("open_time"),
    *_values(),
    _time("fetched_at"),
    _text("run_id"),
    PrimaryKeyConstraint("exchange", "symbol", "timeframe", name="live_candles_pkey"),
    *_ohlcv_rules("live_candles"),
)

#: What validation refused, once each, with the first run that received it and when we refused it.
REJECTED_CANDLES: Final = Table(
    "rejected_candles",
    METADATA,
    Column("rejection_id", Uuid, nullable=False),  # digest of what was refused: rejected.py
    _name("exchange"),
    _name("symbol"),
    _name("timeframe"),
    Column("partition_date", Date, nullable=False),
    _time("open_time", nullable=True),
    *_values(nullable=True),
    _text("received"),
    _text("rule"),
    _text("message"),
    _text("run_id"),
    _time("fetched_at"),
    Column("rejected_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("rejection_id", name="rejected_candles_pkey"),
    CheckConstraint(
        f"length(received) <= {RECEIVED_LIMIT}", name="rejected_candles_received_bound"
    ),
    CheckConstraint(f"length(message) <= {MESSAGE_LIMIT}", name="rejected_candles_message_bound"),
    Index("rejected_candles_partition", "exchange", "partition_date"),
)

#: The ledger: every missing interval ``[gap_start, gap_end)`` of a series, cut at UTC midnights.
CANDLE_GAPS: Final = Table(
    "candle_gaps",
    METADATA,
    _name("exchange"),
    _name("symbol"),
    _name("timeframe"),
    _time("gap_start"),
    _time("gap_end"),
    _text("cause"),
    _text("evidence"),
    _time("first_seen"),
    _time("last_checked", nullable=True),
    _time("next_retry", nullable=True),
    PrimaryKeyConstraint("exchange", "symbol", "timeframe", "gap_start", name="candle_gaps_pkey"),
    CheckConstraint("gap_start < gap_end", name="candle_gaps_not_empty"),
    CheckConstraint(
        "gap_end AT TIME ZONE 'UTC'"
        " <= date_trunc('day', gap_start AT TIME ZONE 'UTC') + interval '1 day'",
        name="candle_gaps_within_a_day",
    ),
    CheckConstraint(_one_of("cause", CAUSES), name="candle_gaps_cause_known"),
    CheckConstraint(
        f"({_one_of('cause', (cause for cause in CAUSES if cause in PROVEN))})"
        " = (next_retry IS NULL)",
        name="candle_gaps_retry_unless_proven",
    ),
    CheckConstraint(f"length(evidence) <= {EVIDENCE_LIMIT}", name="candle_gaps_evidence_bound"),
    # A day of an exchange is replaced and read at once.
    Index("candle_gaps_day", "exchange", "gap_start"),
    # What is left to ask for: few rows among the proven ones of quiet markets.
    Index(
        "candle_gaps_retry",
        "exchange",
        "next_retry",
        postgresql_where=text("next_retry IS NOT NULL"),
    ),
)

#: When each exchange answered anybody, and since when it does so without a long break.
EXCHANGE_STATES: Final = Table(
    "exchange_states",
    METADATA,
    _name("exchange"),
    _time("answered_at"),
    _time("back_at"),
    PrimaryKeyConstraint("exchange", name="exchange_states_pkey"),
    CheckConstraint("back_at <= answered_at", name="exchange_states_back_before_answered"),
)

#: How complete each partition was found when it was last looked at; counts are candles.
CANDLE_PARTITIONS: Final = Table(
    "candle_partitions",
    METADATA,
    _name("exchange"),
    Column("partition_date", Date, nullable=False),
    Column("complete", Boolean, nullable=False),
    *(
        Column(name, BigInteger, nullable=False)
        for name in ("expected", "stored", "missing", "unproven")
    ),
    Column("live", Boolean, nullable=False),  # the minute schedule collected it while it was today
    _time("answered_at", nullable=True),
    _time("checked_at"),
    PrimaryKeyConstraint("exchange", "partition_date", name="candle_partitions_pkey"),
    CheckConstraint(
        "expected >= 0 AND stored >= 0 AND missing >= 0 AND unproven >= 0",
        name="candle_partitions_counts_not_negative",
    ),
    CheckConstraint("unproven <= missing", name="candle_partitions_unproven_are_missing"),
    CheckConstraint(
        "complete = (unproven = 0 AND stored + missing = expected)",
        name="candle_partitions_complete_by_counts",
    ),
)

event.listen(METADATA, "after_create", DDL(CANDLES_FILLED))  # type: ignore[no-untyped-call]  # SQLAlchemy's

#: What is left of each exchange's request budget, and how it was used.
REQUEST_BUDGETS: Final = Table(
    "request_budgets",
    METADATA,
    _name("name"),  # the exchange, and the address its requests come from
    Column("next_at", DateTime(timezone=True), nullable=False, server_default=text("'-infinity'")),
    Column(
        "blocked_until", DateTime(timezone=True), nullable=False, server_default=text("'-infinity'")
    ),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("strikes", "requests", "refused", "bans")
    ),
    Column("waited_seconds", Double, nullable=False, server_default=text("0")),
    # Why this address is not served at all; empty where it is.
    Column("denied", Text, nullable=False, server_default=text("''")),
    PrimaryKeyConstraint("name", name="request_budgets_pkey"),
)

event.listen(METADATA, "after_create", DDL(TAKE_REQUEST_PLACE))  # type: ignore[no-untyped-call]  # SQLAlchemy's

#: The markets of the configured symbols, as ccxt read them, shared by all runs.
EXCHANGE_MARKETS: Final = Table(
    "exchange_markets",
    METADATA,
    _name("exchange"),
    _text("fingerprint"),  # of what decides which markets an exchange has: its ccxt section
    _time("loaded_at"),
    _text("markets"),  # JSON
    PrimaryKeyConstraint("exchange", name="exchange_markets_pkey"),
)
