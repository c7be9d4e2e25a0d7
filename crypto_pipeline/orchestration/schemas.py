"""Column schemas as Dagster metadata, from the shapes and the tables themselves."""

from __future__ import annotations

from typing import Any

import dagster as dg
from sqlalchemy import Column
from sqlalchemy.dialects import postgresql

from crypto_pipeline.core.candles import OBSERVATION_DTYPES
from crypto_pipeline.database.tables import CANDLES


def observation_columns() -> dg.TableSchema:
    """The raw zone's columns."""
    return dg.TableSchema(
        [dg.TableColumn(name, str(dtype)) for name, dtype in OBSERVATION_DTYPES.items()]
    )


def candles_columns() -> dg.TableSchema:
    """The hypertable's columns."""
    return dg.TableSchema(
        [dg.TableColumn(column.name, _sql_type(column)) for column in CANDLES.columns]
    )


def _sql_type(column: Column[Any]) -> str:
    """The type as PostgreSQL shows it, without its collation."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return str(column.type.compile(dialect)).split(" COLLATE")[0].lower()
