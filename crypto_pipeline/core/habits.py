"""How each exchange's candle endpoint behaves: pages, ``until``, reach, quiet minutes, real cost.

One table for planner, fetcher and gap causes alike; ``pipeline.yaml`` overrides any of it per
exchange. Source: ccxt 4.5.90's features and sources, corrected where measurements differ (mexc
pages, the costs of bitfinex and hyperliquid). An exchange that is not in the table gets
:data:`SAFE`: nothing it leaves out is taken for proof.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field


class Habits(BaseModel):
    """What planning, fetching and the causes of gaps rely on, for one exchange."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    page: int = Field(200, ge=1, description="candles the exchange serves a request")
    until: Literal["inclusive", "exclusive"] | None = Field(
        None, description="whether a request may name its end, and whether that end is served"
    )
    history: int | None = Field(
        None, ge=1, description="candles back from now that the exchange serves; null: all"
    )
    trades: bool = Field(
        default=False,
        description="whether its trades reach further back than its candles, so that older candles"
        " are built from them",
    )
    quiet: Literal["filled", "omitted", "unknown"] = Field(
        "unknown",
        description="what stands for a minute without trades: a flat candle, or nothing",
    )
    settle_ms: int = Field(
        2_000, ge=0, description="how long after its close a candle may still change"
    )
    extra_rows: bool = Field(
        default=False,
        description="whether answers may hold candles outside the window that was asked for",
    )
    cost_ms: float | None = Field(
        None, gt=0, description="milliseconds of the budget a request takes; null: as ccxt says"
    )


SAFE: Final = Habits(extra_rows=True)

HABITS: Final[dict[str, Habits]] = {
    "binance": Habits(page=1_000, until="inclusive", quiet="filled", cost_ms=20),
    "binanceus": Habits(page=1_000, until="inclusive", quiet="filled", cost_ms=50),
    # Serves the newest 720 candles and the forming one, whatever was asked for. Its trades go back
    # to its first: `since` is a cursor in nanoseconds (ccxt's kraken.fetch_trades, issue 5677).
    "kraken": Habits(
        page=720, history=720, trades=True, quiet="filled", extra_rows=True, cost_ms=1_200
    ),
    "coinbase": Habits(page=300, until="inclusive", quiet="omitted", extra_rows=True, cost_ms=102),
    "coinbaseexchange": Habits(
        page=300, until="inclusive", quiet="omitted", extra_rows=True, cost_ms=100
    ),
    "okx": Habits(page=300, until="exclusive", quiet="filled", cost_ms=110),
    "bybit": Habits(page=1_000, until="inclusive", quiet="filled", cost_ms=100),
    "kucoin": Habits(page=1_500, quiet="omitted", extra_rows=True, cost_ms=22.5),
    # ccxt's gate.fetch_trades sends `since` for contracts only: spot trades are the newest ones.
    "gate": Habits(page=1_000, until="inclusive", history=10_000, cost_ms=50),
    "bitfinex": Habits(page=10_000, until="inclusive", quiet="omitted", cost_ms=2_000),
    "bitstamp": Habits(page=1_000, until="inclusive", quiet="filled", cost_ms=75),
    # Serves a fixed window of recent candles. ccxt's gemini.fetch_trades sends `since`, but nothing
    # says which 500 of the trades after it come, or how far back: not relied on.
    "gemini": Habits(page=1_000, history=1_000, quiet="omitted", extra_rows=True, cost_ms=500),
    "mexc": Habits(page=500, until="inclusive", cost_ms=50),
    "htx": Habits(page=1_000, until="inclusive", quiet="filled", cost_ms=100),
    "cryptocom": Habits(page=300, extra_rows=True, cost_ms=10),
    "bitget": Habits(page=200, until="inclusive", cost_ms=50),
    # ccxt's hyperliquid.fetch_trades asks for one wallet's own trades, not the market's.
    "hyperliquid": Habits(page=5_000, until="inclusive", history=5_000, cost_ms=1_000),
}


def habits_of(ccxt_id: str) -> Habits:
    """The exchange's habits, or safe ones for an exchange nobody measured."""
    return HABITS.get(ccxt_id, SAFE)
