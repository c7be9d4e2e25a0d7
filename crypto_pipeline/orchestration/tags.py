"""Tags by which runs of this project know each other."""

from __future__ import annotations

from typing import Final

#: On the minute schedule's runs: the exchange.
EXCHANGE_TAG: Final = "crypto_pipeline/exchange"
#: On a minute run in whose favour ticks were skipped: the newest such tick.
SKIPPED_TAG: Final = "crypto_pipeline/skipped_tick"
#: On the runs that fill gaps: the exchange.
HEALS_TAG: Final = "crypto_pipeline/heals"

#: On a run that asks for every hole, however short ago it was asked for.
AGAIN_TAG: Final = "crypto_pipeline/again"

RANGE_START: Final = "dagster/asset_partition_range_start"
RANGE_END: Final = "dagster/asset_partition_range_end"
