"""An exchange's markets, loaded once for all runs.

Loading them costs up to eleven requests, and a process a minute that does so gets its address
banned. Kept are the markets of the configured symbols, as ccxt read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import ccxt
import orjson

from crypto_pipeline.config.model import ExchangeConfig

#: A symbol that an exchange did not list is looked for again after so long.
ABSENT_AGE_MS: Final = 600_000


class MarketCache(Protocol):
    """Where the markets of one exchange are kept between runs."""

    def read(self, fingerprint: str) -> tuple[int, str] | None:
        """When they were loaded, ms, and what was written; None if for another fingerprint."""

    def write(self, fingerprint: str, loaded_at: int, markets: str) -> None:
        """Replace them."""


def fingerprint(config: ExchangeConfig) -> str:
    """A digest of what decides which markets an exchange has, and how ccxt reads them."""
    decisive = {
        name: config.ccxt.get(name)
        for name in ("urls", "options", "has", "hostname", "sandbox", "testnet")
    }
    text = json.dumps([ccxt.__version__, config.ccxt_id, decisive], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached_markets(
    cache: MarketCache, config: ExchangeConfig, *, now: int
) -> list[dict[str, Any]] | None:
    """The markets of all configured symbols; None if they must be loaded.

    Symbols that the exchange did not list when it was asked are missing, until it is time to look
    for them again.
    """
    kept = cache.read(fingerprint(config))
    if kept is None:
        return None
    loaded_at, text = kept
    content = orjson.loads(text)
    known = {market["symbol"] for market in content["markets"]}
    missing = set(config.symbols) - known
    if missing - set(content["absent"]):
        return None  # a symbol that was configured since
    age = ABSENT_AGE_MS if missing else int(config.markets.max_age_hours * 3_600_000)
    if not loaded_at <= now < loaded_at + age or not known:
        return None
    markets: list[dict[str, Any]] = content["markets"]
    return markets


def keep_markets(
    cache: MarketCache,
    config: ExchangeConfig,
    *,
    now: int,
    market: Callable[[str], dict[str, Any]],
    listed: Iterable[str],
) -> None:
    """Keep what was just loaded of the configured symbols.

    One market is kept even where none of them is listed: ccxt loads all of them if it has none.
    """
    listed = set(listed)
    wanted = [symbol for symbol in config.symbols if symbol in listed] or [min(listed)]
    content = {
        "markets": [market(symbol) for symbol in wanted],
        "absent": [symbol for symbol in config.symbols if symbol not in listed],
    }
    cache.write(fingerprint(config), now, orjson.dumps(content, default=str).decode())
