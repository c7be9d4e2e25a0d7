"""Alembic's entry: run the migrations on the connection that migrate.py hands over."""

from __future__ import annotations

from alembic import context

from crypto_pipeline.database.tables import METADATA
from crypto_pipeline.database.version import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
