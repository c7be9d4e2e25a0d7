"""Which series there are, and the newest candle of each."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "candle_series",
        sa.Column("exchange", sa.Text(collation="C"), nullable=False),
        sa.Column("symbol", sa.Text(collation="C"), nullable=False),
        sa.Column("timeframe", sa.Text(collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("exchange", "symbol", "timeframe", name="candle_series_pkey"),
    )
    op.execute("INSERT INTO candle_series SELECT DISTINCT exchange, symbol, timeframe FROM candles")
    op.execute(LATEST_CANDLES)


LATEST_CANDLES = """
CREATE VIEW public.latest_candles AS
SELECT newest.*
FROM public.candle_series AS s
CROSS JOIN LATERAL (
    SELECT c.exchange, c.symbol, c.timeframe, c.open_time, c.open, c.high, c.low, c.close, c.volume,
        c.fetched_at, c.run_id, c.source
    FROM public.candles AS c
    WHERE c.exchange = s.exchange AND c.symbol = s.symbol AND c.timeframe = s.timeframe
    ORDER BY c.open_time DESC
    LIMIT 1
) AS newest
"""
