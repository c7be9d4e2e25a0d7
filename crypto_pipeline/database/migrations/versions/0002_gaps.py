"""The ledger of gaps, the state of each partition, and candles with proven gaps filled."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "candle_gaps",
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
        sa.PrimaryKeyConstraint(
            "exchange", "symbol", "timeframe", "gap_start", name="candle_gaps_pkey"
        ),
        sa.CheckConstraint("gap_start < gap_end", name="candle_gaps_not_empty"),
        sa.CheckConstraint(
            "gap_end AT TIME ZONE 'UTC'"
            " <= date_trunc('day', gap_start AT TIME ZONE 'UTC') + interval '1 day'",
            name="candle_gaps_within_a_day",
        ),
        sa.CheckConstraint(
            "cause IN ('no_trades', 'exchange_outage', 'not_listed_yet', 'delisted',"
            " 'beyond_history', 'fetch_failed', 'rejected', 'unknown')",
            name="candle_gaps_cause_known",
        ),
        sa.CheckConstraint(
            "(cause IN ('no_trades', 'exchange_outage', 'not_listed_yet', 'delisted',"
            " 'beyond_history')) = (next_retry IS NULL)",
            name="candle_gaps_retry_unless_proven",
        ),
        sa.CheckConstraint("length(evidence) <= 1024", name="candle_gaps_evidence_bound"),
    )
    op.create_index("candle_gaps_day", "candle_gaps", ["exchange", "gap_start"])
    op.create_index(
        "candle_gaps_retry",
        "candle_gaps",
        ["exchange", "next_retry"],
        postgresql_where=sa.text("next_retry IS NOT NULL"),
    )
    op.create_table(
        "candle_partitions",
        _name("exchange"),
        sa.Column("partition_date", sa.Date, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
        _count("expected"),
        _count("stored"),
        _count("missing"),
        _count("unproven"),
        sa.Column("live", sa.Boolean, nullable=False),
        _time("answered_at", nullable=True),
        _time("checked_at"),
        sa.PrimaryKeyConstraint("exchange", "partition_date", name="candle_partitions_pkey"),
        sa.CheckConstraint(
            "expected >= 0 AND stored >= 0 AND missing >= 0 AND unproven >= 0",
            name="candle_partitions_counts_not_negative",
        ),
        sa.CheckConstraint("unproven <= missing", name="candle_partitions_unproven_are_missing"),
        sa.CheckConstraint(
            "complete = (unproven = 0 AND stored + missing = expected)",
            name="candle_partitions_complete_by_counts",
        ),
    )
    op.create_table(
        "exchange_states",
        _name("exchange"),
        _time("answered_at"),
        _time("back_at"),
        sa.PrimaryKeyConstraint("exchange", name="exchange_states_pkey"),
        sa.CheckConstraint("back_at <= answered_at", name="exchange_states_back_before_answered"),
    )
    op.execute(CANDLES_FILLED)


def _name(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(collation="C"), nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False)


CANDLES_FILLED = """
CREATE FUNCTION public.candles_filled(
    of_exchange text, of_symbol text, of_timeframe text, since timestamptz, before timestamptz
) RETURNS TABLE (
    exchange text, symbol text, timeframe text, open_time timestamptz,
    open float8, high float8, low float8, close float8, volume float8,
    fetched_at timestamptz, run_id text, source text, filled text
)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH known AS (
        SELECT c.open_time, c.open, c.high, c.low, c.close, c.volume,
            c.fetched_at, c.run_id, c.source, NULL::text AS cause
        FROM public.candles AS c
        WHERE c.exchange = of_exchange COLLATE "C" AND c.symbol = of_symbol COLLATE "C"
            AND c.timeframe = of_timeframe COLLATE "C"
            AND c.open_time >= since AND c.open_time < before
        UNION ALL
        (SELECT c.open_time, NULL, NULL, NULL, c.close, NULL, NULL, NULL, NULL, NULL
        FROM public.candles AS c
        WHERE c.exchange = of_exchange COLLATE "C" AND c.symbol = of_symbol COLLATE "C"
            AND c.timeframe = of_timeframe COLLATE "C" AND c.open_time < since
        ORDER BY c.open_time DESC LIMIT 1)
        UNION ALL
        SELECT slot, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, g.cause
        FROM public.candle_gaps AS g
        CROSS JOIN LATERAL unnest(ARRAY(SELECT generate_series(
            g.gap_start,
            least(g.gap_end, before) - interval '1 microsecond',
            substring(of_timeframe FROM '^([1-9][0-9]{0,4})[smhd]$')::int
                * CASE right(of_timeframe, 1)
                    WHEN 's' THEN interval '1 second'
                    WHEN 'm' THEN interval '1 minute'
                    WHEN 'h' THEN interval '1 hour'
                    WHEN 'd' THEN interval '24 hours'
                END
        ))) AS slot
        WHERE g.exchange = of_exchange COLLATE "C" AND g.symbol = of_symbol COLLATE "C"
            AND g.timeframe = of_timeframe COLLATE "C"
            AND g.gap_start >= since - interval '24 hours' AND g.gap_start < before
            AND g.cause IN ('no_trades', 'exchange_outage')
            AND slot >= since
    ),
    numbered AS (
        SELECT *, count(known.close) OVER ordered AS run,
            lag(known.open_time) OVER ordered AS slot_before
        FROM known
        WINDOW ordered AS (ORDER BY known.open_time, known.cause NULLS FIRST)
    ),
    carried AS (
        SELECT *, max(numbered.close) OVER (PARTITION BY numbered.run) AS last_close FROM numbered
    )
    SELECT of_exchange, of_symbol, of_timeframe, k.open_time,
        coalesce(k.open, k.last_close), coalesce(k.high, k.last_close),
        coalesce(k.low, k.last_close), k.last_close, coalesce(k.volume, 0),
        k.fetched_at, k.run_id, k.source, k.cause
    FROM carried AS k
    WHERE k.open_time >= since AND k.last_close IS NOT NULL
        AND (k.cause IS NULL OR k.slot_before IS DISTINCT FROM k.open_time)
$$
"""
