"""Mistakes in a configuration are one clear error."""

from pathlib import Path

import pytest

from crypto_pipeline.core.timeframes import DAY_MS
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator import SimulatorConfig


def parse(exchange: dict[str, object], key: str = "kraken") -> SimulatorConfig:
    return SimulatorConfig.parse({"exchanges": {key: exchange}}, origin="x.yaml")


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        (
            {},
            r"x\.yaml is not a simulator configuration: exchanges\.kraken\.symbols: Field required",
        ),
        ({"symbols": []}, "symbols must not be empty"),
        ({"symbols": ["BTCUSD"]}, "'BTCUSD' is not a spot symbol such as BTC/USDT"),
        ({"symbols": ["BTC/USD:USD"]}, "is not a spot symbol"),
        ({"symbols": ["BTC/USD"], "quiet_rate": 1}, "quiet_rate"),
        (
            {"symbols": ["BTC/USD"], "dialect": "okx"},
            "dialect: Input should be 'binance', 'kraken'",
        ),
        ({"symbols": ["BTC/USD"], "outages": [[60_000, 0]]}, "start before end"),
        ({"symbols": {"BTC/USD": {"listed": 30_000}}}, "whole minutes"),
        ({"symbols": {"BTC/USD": {"delisted": "2014-01-01"}}}, "after listed"),
        ({"symbols": ["BTC/USD"], "frozen": 1}, "frozen: Extra inputs"),
    ],
)
def test_mistakes_name_the_key(exchange: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(exchange)


def test_a_key_without_a_dialect_needs_one() -> None:
    with pytest.raises(ConfigError, match="'mine' needs a dialect: binance, kraken"):
        parse({"symbols": ["BTC/USD"]}, key="mine")
    assert parse({"symbols": ["BTC/USD"], "dialect": "kraken"}, key="mine").dialect_of("mine")


@pytest.mark.parametrize("key", ["", "_control", "a/b"])
def test_a_key_is_part_of_the_url(key: str) -> None:
    with pytest.raises(ConfigError, match="part of the URL"):
        parse({"symbols": ["BTC/USD"], "dialect": "kraken"}, key=key)


def test_times_are_utc_dates_datetimes_or_milliseconds(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "exchanges:\n  kraken:\n    symbols:\n      A/B: {listed: 2020-01-01, delisted: '2020-01-02'}\n"
        "    outages: [[2020-01-01T00:00:00Z, 2020-01-01T12:00:00+01:00]]\n"
    )
    exchange = SimulatorConfig.from_file(path).exchanges["kraken"]
    start = 18_262 * DAY_MS
    assert (exchange.symbols["A/B"].listed, exchange.symbols["A/B"].delisted) == (
        start,
        start + DAY_MS,
    )
    assert exchange.outages == ((start, start + 11 * DAY_MS // 24),)


def test_a_pipeline_with_an_exchange_it_does_not_speak_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'okx' \(exchange 'mine'\).*binance, binanceus, kraken"):
        SimulatorConfig.for_pipeline({"mine": ("okx", ["BTC/USDT"])})


def test_a_configuration_travels_as_json() -> None:
    config = SimulatorConfig.for_pipeline(
        {"a": ("binanceus", ["BTC/USDT"])}, replay=Path("/x"), seed=3
    )
    assert SimulatorConfig.model_validate_json(config.model_dump_json()) == config


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Cannot read .*nope\.yaml"):
        SimulatorConfig.from_file(tmp_path / "nope.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match=r"Cannot read .*bad\.yaml"):
        SimulatorConfig.from_file(tmp_path / "bad.yaml")
