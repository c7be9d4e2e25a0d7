"""Hours of 1m candles; those of a database that has candles take about a minute for 80 million."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "candle_hours",
        sa.Column("exchange", sa.Text(collation="C"), nullable=False),
        sa.Column("symbol", sa.Text(collation="C"), nullable=False),
        sa.Column("open_time", sa.DateTime(timezone=True), nullable=False),
        *(
            sa.Column(name, sa.Double, nullable=False)
            for name in ("open", "high", "low", "close", "volume")
        ),
        sa.Column("minutes", sa.SmallInteger, nullable=False),
        sa.PrimaryKeyConstraint("exchange", "symbol", "open_time", name="candle_hours_pkey"),
        sa.CheckConstraint("minutes > 0", name="candle_hours_not_empty"),
    )
    op.execute("LOCK TABLE candles IN SHARE MODE")  # what is stored meanwhile comes afterwards
    op.execute(FILL)


#: Series by series, so that nothing is sorted but one of them.
FILL = """
INSERT INTO candle_hours
SELECT s.exchange, s.symbol, hours.*
FROM candle_series AS s
CROSS JOIN LATERAL (
    SELECT date_bin('1 hour', c.open_time, '2000-01-01 00:00:00+00') AS hour,
        (array_agg(c.open ORDER BY c.open_time))[1], max(c.high), min(c.low),
        (array_agg(c.close ORDER BY c.open_time))[count(*)],
        sum(least(c.volume, 1e306) ORDER BY c.open_time), count(*)
    FROM candles AS c
    WHERE c.exchange = s.exchange AND c.symbol = s.symbol AND c.timeframe = '1m'
    GROUP BY hour
) AS hours
WHERE s.timeframe = '1m'
"""
