"""Whether the configured exchanges, timeframes and symbols exist, before anything starts."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

import ccxt.async_support

from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.config.model import RetryConfig
from crypto_pipeline.errors import ConfigError, ExchangeError
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

#: Constructor keys that are no properties.
_SWITCHES: Final = ("sandbox", "testnet")


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
        plain = getattr(ccxt.async_support, exchange.ccxt_id)()
        yield from _unknown_keys(plain, exchange.ccxt, f"{where}.ccxt")
        served = plain.timeframes or {}
        if not served or plain.has["fetchOHLCV"] is not True:
            yield f"{where}: ccxt {ccxt.__version__} has no candles of {exchange.ccxt_id}."
            continue
        for timeframe in exchange.timeframes:
            if timeframe not in served:
                yield (
                    f"{where}.timeframes: {exchange.ccxt_id} has no timeframe {timeframe!r}."
                    f" Allowed: {', '.join(served)}."
                )


def _unknown_keys(plain: Any, section: Mapping[str, Any], where: str) -> Iterator[str]:
    """Any key becomes an attribute in ccxt: a misspelt one does nothing, another breaks a method."""
    known = [name for name in dir(plain) if not name.startswith("_")]
    settable = [*_SWITCHES, *(name for name in known if not callable(getattr(plain, name)))]
    for key in section:
        if key not in settable:
            close = difflib.get_close_matches(key, settable, n=1, cutoff=0.75)
            guess = f" Did you mean {close[0]}?" if close else ""
            yield (
                f"{where}.{key}: ccxt's {plain.id} has no such setting.{guess} Allowed are the"
                " properties of ccxt's exchange classes: apiKey, secret, options, urls, timeout …"
            )


async def check_symbols(
    config: LoadedConfig,
    *,
    exchanges: Collection[str] | None = None,
    patience_seconds: float = 10.0,
) -> list[str]:
    """Ask every exchange, or those named, whether it lists the configured symbols.

    Returns:
        A sentence for each exchange that could not be asked.

    Raises:
        ConfigError: one line a symbol that an exchange does not list.
    """
    answers = await asyncio.gather(
        *(
            _unlisted(config, key, patience_seconds)
            for key in (config.pipeline.exchanges if exchanges is None else exchanges)
        )
    )
    mistakes = [line for lines, _ in answers for line in lines]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return [reason for _, reason in answers if reason is not None]


async def _unlisted(
    config: LoadedConfig, key: str, patience_seconds: float
) -> tuple[list[str], str | None]:
    exchange = config.pipeline.exchanges[key].model_copy(
        update={"retry": RetryConfig(attempts=1), "timeout_seconds": patience_seconds}
    )
    async with ExchangeWrapper(key=key, config=exchange, secrets=config.secrets) as wrapper:
        try:
            await wrapper.load_markets()
        except ExchangeError as error:
            return [], f"{key} cannot be asked for its symbols now: {error.message}"
        listed = wrapper.symbols
    lines = []
    for symbol in exchange.symbols:
        if symbol not in listed:
            close = difflib.get_close_matches(symbol, listed, n=3)
            guess = f" Did you mean {' or '.join(close)}?" if close else ""
            lines.append(
                f"{config.path}: exchanges.{key}.symbols: {exchange.ccxt_id} lists no {symbol!r}"
                f" among its {len(listed)} markets.{guess}"
            )
    return lines, None
