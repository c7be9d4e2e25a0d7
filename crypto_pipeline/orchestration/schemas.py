"""Column schemas as Dagster metadata, from the shapes and the tables themselves."""

from __future__ import annotations

import dagster as dg

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
        [dg.TableColumn(column.name, str(column.type).lower()) for column in CANDLES.columns]
    )
