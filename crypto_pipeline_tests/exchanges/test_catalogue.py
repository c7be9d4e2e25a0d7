"""What ccxt and the exchanges themselves say about the configuration, before anything starts."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.exchanges.catalogue import check_exchanges, check_symbols
from crypto_pipeline_tests.exchanges.conftest import KEYS, SYMBOLS, Asker


def loaded(**exchanges: dict[str, Any]) -> LoadedConfig:
    sections = {
        key: {"symbols": ["BTC/USDT"], "start": date(2024, 1, 1), **section}
        for key, section in exchanges.items()
    }
    config = PipelineConfig.model_validate({"exchanges": sections})
    return LoadedConfig(config, Path("/somewhere/pipeline.yaml"), ())


def mistakes(config: LoadedConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_exchanges(config)
    return str(caught.value).splitlines()


def test_exchanges_that_exist_pass() -> None:
    """The ids and timeframes of our own example."""
    check_exchanges(
        loaded(binance={"timeframes": ["1m", "1h", "1d"]}, mine={"ccxt_id": "kraken"}, okx={})
    )


def test_an_unknown_exchange_is_told_with_the_likely_ones() -> None:
    """``coinbasepro`` of older ccxt versions is ``coinbaseexchange`` now."""
    (line,) = mistakes(loaded(binanc={}))
    assert "/somewhere/pipeline.yaml: exchanges.binanc: ccxt 4.5.90 has no exchange" in line
    assert "Did you mean binance" in line
    assert "ccxt.exchanges" in line


@pytest.mark.parametrize("ccxt_id", ["Exchange", "exchanges", "base", "pro", "__name__", ""])
def test_names_in_ccxts_module_that_are_no_exchange_are_refused(ccxt_id: str) -> None:
    """``getattr(ccxt, …)`` finds these."""
    (line,) = mistakes(loaded(mine={"ccxt_id": ccxt_id}))
    assert f"has no exchange {ccxt_id!r}" in line


def test_a_timeframe_the_exchange_does_not_serve_is_told_with_those_it_does() -> None:
    """ccxt sends any timeframe without a word: Kraken got ``3m``."""
    (line,) = mistakes(loaded(kraken={"timeframes": ["1m", "3m"]}))
    assert "exchanges.kraken.timeframes: kraken has no timeframe '3m'. Allowed: 1m, 5m" in line


def test_every_mistake_has_its_own_line() -> None:
    """All of them at once, so that a file is mended in one go."""
    config = loaded(
        nowhere={}, kraken={"timeframes": ["3m", "2h"]}, binance={"ccxt": {"apikey": "x"}}
    )
    assert len(mistakes(config)) == 4


def test_an_exchange_without_candles_is_refused() -> None:
    """Some ccxt classes have no candle endpoint at all."""
    (line,) = mistakes(loaded(bit2c={}))
    assert "ccxt 4.5.90 has no candles of bit2c" in line


@pytest.mark.parametrize(
    ("key", "guess"),
    [("apikey", "apiKey"), ("enableratelimit", "enableRateLimit"), ("option", "options"),
     ("fetch_ohlcv", None), ("fetch", None), ("sign", None)],
)  # fmt: skip
def test_a_ccxt_setting_that_does_nothing_or_breaks_a_method_is_refused(
    key: str, guess: str | None
) -> None:
    """``apikey`` was kept as an attribute nobody reads: requests went out without the key."""
    (line,) = mistakes(loaded(binance={"ccxt": {key: "FAKE-value"}}))
    assert f"exchanges.binance.ccxt.{key}: ccxt's binance has no such setting." in line
    assert guess is None or f"Did you mean {guess}?" in line
    assert "FAKE-value" not in line


def test_the_ccxt_settings_that_people_make_pass() -> None:
    """Credentials, URLs, proxies, limits, headers."""
    section = {
        "apiKey": "x", "secret": "x", "password": "x", "uid": "x", "urls": {"api": {}},
        "options": {"defaultType": "spot"}, "timeout": 10_000, "enableRateLimit": True,
        "rateLimit": 100, "httpsProxy": "http://p", "httpProxy": "http://p", "headers": {},
        "socksProxy": "socks5://p", "aiohttp_proxy": "http://p", "aiohttp_trust_env": True,
        "proxies": {}, "verbose": False, "userAgent": "x", "has": {}, "sandbox": True,
        "hostname": "binance.com", "verify": True, "privateKey": "x", "walletAddress": "x",
    }  # fmt: skip
    check_exchanges(loaded(binance={"ccxt": section}, kraken={"ccxt": section}))


def of_simulator(asker: Asker, **symbols: list[str]) -> LoadedConfig:
    sections = {
        key: {"symbols": names, "ccxt": asker.simulator.ccxt_config(key)}
        for key, names in symbols.items()
    }
    return loaded(**sections)


def test_listed_symbols_pass(asker: Asker) -> None:
    """One request for the markets of each exchange, no more."""
    config = of_simulator(asker, **{key: [symbol] for key, symbol in SYMBOLS.items()})
    assert asyncio.run(check_symbols(config)) == []
    assert len(asker.simulator.control.arrivals()) == len(KEYS)


def test_symbols_an_exchange_does_not_list_are_told_with_the_likely_ones(asker: Asker) -> None:
    """One line each, over all exchanges."""
    config = of_simulator(
        asker, binance=["BTC/USDT", "BTC/USDC", "XRP/USDT"], kraken=["BTC/USD", "BTC/USD:USD"]
    )
    with pytest.raises(ConfigError) as caught:
        asyncio.run(check_symbols(config))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("/somewhere/pipeline.yaml: exchanges.binance.symbols: binance lists")
    assert "no 'BTC/USDC' among its 2 markets. Did you mean BTC/USDT" in lines[0]
    assert "no 'BTC/USD:USD'" in lines[2]


def test_an_exchange_that_cannot_be_asked_is_a_warning(asker: Asker) -> None:
    """The network may be away when the pipeline starts; the schedule will ask again."""
    control = asker.simulator.control
    control.add_fault(act="status", status=503, exchange="kraken")
    control.add_fault(act="body", body="html", exchange="coinbaseexchange")
    config = of_simulator(asker, **{key: [symbol] for key, symbol in SYMBOLS.items()})
    warnings = asyncio.run(check_symbols(config))
    assert len(warnings) == 2
    assert warnings[0].startswith("kraken cannot be asked for its symbols now: ")
    assert "503" in warnings[0]
    assert "coinbaseexchange" in warnings[1]
    assert len(control.arrivals(exchange="kraken")) == 1  # a check does not try again


def test_an_exchange_that_hangs_is_a_warning_after_the_patience(asker: Asker) -> None:
    """``doctor`` and ``up`` do not wait for the timeout of a collection."""
    asker.simulator.control.add_fault(act="delay", latency=5, exchange="kraken")
    config = of_simulator(asker, kraken=["BTC/USD"])
    (warning,) = asyncio.run(check_symbols(config, patience_seconds=0.2))
    assert "Timeout" in warning


def test_a_wrong_symbol_is_told_although_another_exchange_is_away(asker: Asker) -> None:
    """The mistake is certain, the outage passes."""
    asker.simulator.control.add_fault(act="drop", exchange="kraken")
    config = of_simulator(asker, kraken=["BTC/USD"], binance=["NO/SUCH"])
    with pytest.raises(ConfigError, match="NO/SUCH"):
        asyncio.run(check_symbols(config))
