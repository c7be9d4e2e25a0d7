"""The wire formats, one module an exchange family. Nothing else knows what an answer looks like."""

from __future__ import annotations

from collections.abc import Iterable

from crypto_pipeline.simulator.config import DialectName
from crypto_pipeline.simulator.dialects.base import Dialect, Route, RowLayout, Venue
from crypto_pipeline.simulator.dialects.binance import BinanceDialect
from crypto_pipeline.simulator.dialects.coinbaseexchange import CoinbaseExchangeDialect
from crypto_pipeline.simulator.dialects.kraken import KrakenDialect

__all__ = ["Dialect", "Route", "RowLayout", "Venue", "make_dialect"]

_DIALECTS: dict[DialectName, type[Dialect]] = {
    "binance": BinanceDialect,
    "kraken": KrakenDialect,
    "coinbaseexchange": CoinbaseExchangeDialect,
}


def make_dialect(name: DialectName, symbols: Iterable[str]) -> Dialect:
    """The wire format of an exchange that lists these symbols."""
    return _DIALECTS[name](symbols)
