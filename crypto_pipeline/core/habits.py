"""How each exchange's candle endpoint behaves: page sizes, ``until``, reach, extra rows.

One table for planner and fetcher alike; ``pipeline.yaml`` overrides any of it per exchange. Source:
ccxt 4.5.90's features and sources, corrected where measurements differ (mexc pages, for one). An
exchange that is not in the table gets :data:`SAFE`.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field


class Habits(BaseModel):
    """What planning and fetching rely on, for one exchange."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    page: int = Field(200, ge=1, description="candles the exchange serves a request")
    until: Literal["inclusive", "exclusive"] | None = Field(
        None, description="whether a request may name its end, and whether that end is served"
    )
    history: int | None = Field(
        None, ge=1, description="candles back from now that the exchange serves; null: all"
    )
    settle_ms: int = Field(
        2_000, ge=0, description="how long after its close a candle may still change"
    )
    extra_rows: bool = Field(
        default=False,
        description="whether answers may hold candles outside the window that was asked for",
    )


SAFE: Final = Habits(extra_rows=True)

HABITS: Final[dict[str, Habits]] = {
    "binance": Habits(page=1_000, until="inclusive"),
    "binanceus": Habits(page=1_000, until="inclusive"),
    # Always serves the newest 720 candles and the forming one, whatever was asked for.
    "kraken": Habits(page=720, history=720, extra_rows=True),
    "coinbase": Habits(page=300, until="inclusive", extra_rows=True),
    "coinbaseexchange": Habits(page=300, until="inclusive", extra_rows=True),
    "okx": Habits(page=300, until="exclusive"),
    "bybit": Habits(page=1_000, until="inclusive"),
    "kucoin": Habits(page=1_500, extra_rows=True),
    "gate": Habits(page=1_000, until="inclusive", history=10_000),
    "bitfinex": Habits(page=10_000, until="inclusive"),
    "bitstamp": Habits(page=1_000, until="inclusive"),
    # Serves a fixed window of recent candles.
    "gemini": Habits(page=1_000, history=1_000, extra_rows=True),
    "mexc": Habits(page=500, until="inclusive"),
    "htx": Habits(page=1_000, until="inclusive"),
    "cryptocom": Habits(page=300, extra_rows=True),
    "bitget": Habits(page=200, until="inclusive"),
    "hyperliquid": Habits(page=5_000, until="inclusive", history=5_000),
}


def habits_of(ccxt_id: str) -> Habits:
    """The exchange's habits, or safe ones for an exchange nobody measured."""
    return HABITS.get(ccxt_id, SAFE)
