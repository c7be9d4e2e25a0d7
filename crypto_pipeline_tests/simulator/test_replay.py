"""Replayed candles come back to the bit, through the wire formats and genuine ccxt."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, to_ms
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator import SimulatorConfig, Truth, running_simulator
from crypto_pipeline_tests.simulator.conftest import SHARED, ask_exchange

CANDLES = SHARED / "candles"
COLUMNS = ["open_time", "open", "high", "low", "close", "volume"]


def recorded(name: str) -> list[list[float]]:
    frame = pd.read_parquet(CANDLES / name)
    frame["open_time"] = frame["open_time"].astype("datetime64[ms, UTC]").astype("int64")
    return frame[COLUMNS].to_numpy().tolist()


async def walk(exchange: Any, symbol: str, start: int, end: int, page: int) -> list[list[float]]:
    """Every candle of ``[start, end)``, window by window."""
    rows: list[list[float]] = []
    for since in range(start, end, page * MINUTE_MS):
        until = min(since + page * MINUTE_MS, end)
        got = await exchange.fetch_ohlcv(symbol, "1m", since, page)
        rows += [row for row in got if row[0] < until]
    return rows


@pytest.mark.skipif(not CANDLES.is_dir(), reason="the real candles are not on this machine")
def test_whole_files_of_real_candles_come_back_to_the_bit() -> None:
    symbols = ["BTC/USDT", "BTC/USD", "BTC/USDC"]
    config = SimulatorConfig.parse(
        {
            "exchanges": {
                "binanceus": {"symbols": symbols, "replay": CANDLES},
                "kraken": {"symbols": ["BTC/USDC"], "replay": CANDLES, "history_limit": 0},
            }
        },
        origin="the tests",
    )
    with running_simulator(config) as simulator:
        for symbol in symbols:
            expected = recorded(f"binanceus-{symbol.replace('/', '_')}-1m-2023-03.parquet")
            start, end = int(expected[0][0]), int(expected[-1][0]) + MINUTE_MS
            got = ask_exchange(
                simulator,
                "binanceus",
                lambda exchange, window=(symbol, start, end): walk(exchange, *window, page=1000),
            )
            assert got == expected
        expected = recorded("kraken-BTC_USDC-1m-2023Q1.parquet")
        start, end = int(expected[0][0]), int(expected[-1][0]) + MINUTE_MS
        got = ask_exchange(
            simulator, "kraken", lambda exchange: walk(exchange, "BTC/USDC", start, end, page=720)
        )
        assert got == expected
        assert Truth(config).candles(
            "kraken", "BTC/USDC", "1m", start, end
        ).to_numpy().tolist() == (expected)


def write(folder: Path, name: str, rows: list[list[float]]) -> None:
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["open_time"] = pd.to_datetime(frame["open_time"].astype("int64"), unit="ms", utc=True)
    frame.to_parquet(folder / name)


def replaying(folder: Path) -> Truth:
    exchange = {"symbols": ["A/B"], "replay": folder}
    return Truth(SimulatorConfig.parse({"exchanges": {"kraken": exchange}}, origin="test"))


def test_several_files_make_one_series_and_the_later_one_wins(tmp_path: Path) -> None:
    first = [[0, 1, 2, 1, 2, 3], [MINUTE_MS, 1, 1, 1, 1, 0]]
    second = [[MINUTE_MS, 5, 6, 4, 5, 1.5], [DAY_MS, 2, 2, 2, 2, 1]]
    write(tmp_path, "kraken-A_B-1m-1.parquet", first)
    write(tmp_path, "kraken-A_B-1m-2.parquet", second)
    write(tmp_path, "binance-A_B-1m-3.parquet", first)
    got = replaying(tmp_path).candles("kraken", "A/B", "1m", 0, 2 * DAY_MS)
    assert got.to_numpy().tolist() == [first[0], *second]


def test_values_that_are_not_short_decimals_survive_the_wire(tmp_path: Path) -> None:
    odd = [0.1 + 0.2, 1e-11 + 1 / 3, 2.5e-9, 1 / 7]
    start = to_ms(pd.Timestamp("2024-03-01", tz="UTC").to_pydatetime())
    row = [start, odd[0], odd[0], odd[2], odd[3], odd[1] * 1e9]
    keys = ("binance", "kraken", "coinbaseexchange")
    for key in keys:
        write(tmp_path, f"{key}-A_B-1m-x.parquet", [row])
    pipeline = {key: (key, ["A/B"]) for key in keys}
    config = SimulatorConfig.for_pipeline(pipeline, replay=tmp_path)
    with running_simulator(config) as simulator:
        for key in keys:
            got = ask_exchange(
                simulator, key, lambda exchange: exchange.fetch_ohlcv("A/B", "1m", start, 10)
            )
            assert got == [row]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "kraken-A_C-1m-1.parquet", [[0, 1, 1, 1, 1, 1]])
    with pytest.raises(ConfigError, match=r"kraken-A_B-1m-\*\.parquet.*kraken-A_C-1m-1\.parquet"):
        replaying(tmp_path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"open_time": [1]}).to_parquet(tmp_path / "kraken-A_B-1m-1.parquet")
    with pytest.raises(ConfigError, match="as candles"):
        replaying(tmp_path)


def test_candles_off_the_minute_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "kraken-A_B-1m-1.parquet", [[1, 1, 1, 1, 1, 1]])
    with pytest.raises(ConfigError, match="whole minutes"):
        replaying(tmp_path)
