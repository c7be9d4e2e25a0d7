"""What ccxt knows without asking anyone: exchanges and their timeframes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import ccxt.async_support

from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.errors import ConfigError


def check_exchanges(config: LoadedConfig) -> None:
    """Refuse exchanges and timeframes that ccxt does not have.

    Raises:
        ConfigError: one line a mistake, with what is allowed.
    """
    mistakes = list(_mistakes(config))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _mistakes(config: LoadedConfig) -> Iterator[str]:
    for key, exchange in config.pipeline.exchanges.items():
        where = f"{config.path}: exchanges.{key}"
        known = ccxt.async_support.exchanges
        if exchange.ccxt_id not in known:
            close = difflib.get_close_matches(exchange.ccxt_id, known, n=3)
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            yield (
                f"{where}: ccxt {ccxt.__version__} has no exchange {exchange.ccxt_id!r}.{guess}"
                f" It has {len(known)}: `python -c 'import ccxt; print(ccxt.exchanges)'` lists them."
            )
            continue
        served = getattr(ccxt.async_support, exchange.ccxt_id)().timeframes or {}
        for timeframe in exchange.timeframes:
            if timeframe not in served:
                yield (
                    f"{where}.timeframes: {exchange.ccxt_id} has no timeframe {timeframe!r}."
                    f" Allowed: {', '.join(served)}."
                )
