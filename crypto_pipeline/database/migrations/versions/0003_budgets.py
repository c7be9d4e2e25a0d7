"""The request budget of each exchange, and its markets, shared by all processes."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "request_budgets",
        sa.Column("name", sa.Text(collation="C"), nullable=False),
        _never("next_at"),
        _never("blocked_until"),
        _count("strikes"),
        _count("requests"),
        _count("refused"),
        _count("bans"),
        sa.Column("waited_seconds", sa.Double, nullable=False, server_default=sa.text("0")),
        sa.Column("denied", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.PrimaryKeyConstraint("name", name="request_budgets_pkey"),
    )
    op.create_table(
        "exchange_markets",
        sa.Column("exchange", sa.Text(collation="C"), nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("loaded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("markets", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("exchange", name="exchange_markets_pkey"),
    )


def _never(name: str) -> sa.Column[datetime]:
    return sa.Column(
        name, sa.DateTime(timezone=True), nullable=False, server_default=sa.text("'-infinity'")
    )


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
