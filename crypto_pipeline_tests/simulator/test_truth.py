"""What the simulated exchanges have: deterministic, continuous, exact."""

import numpy as np
import pandas as pd
import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, timeframe_ms
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator import SimulatorConfig, Truth

START = 19_700 * DAY_MS
LISTED, DELISTED = START + 10 * MINUTE_MS, START + DAY_MS
OUTAGE = (START + 60 * MINUTE_MS, START + 90 * MINUTE_MS)


def truth(key: str = "binance", *, seed: int = 0, **settings: object) -> Truth:
    exchange = {"symbols": ["BTC/USDT"], **settings}
    return Truth(SimulatorConfig.parse({"seed": seed, "exchanges": {key: exchange}}, origin="test"))


def minutes(of: Truth, start: int = START, end: int = START + DAY_MS) -> pd.DataFrame:
    key = next(iter(of._series))[0]
    return of.candles(key, "BTC/USDT", "1m", start, end)


def test_candles_are_a_function_of_the_configuration_alone() -> None:
    whole = minutes(truth(quiet_rate=0.4))
    again = truth(quiet_rate=0.4)
    for first, last in ((700, 710), (3, 4), (0, 1440)):
        part = minutes(again, START + first * MINUTE_MS, START + last * MINUTE_MS)
        pd.testing.assert_frame_equal(part, whole.iloc[first:last].reset_index(drop=True))
    assert not minutes(truth(seed=1, quiet_rate=0.4)).equals(whole)


def test_prices_are_continuous_and_on_the_tick() -> None:
    frame = minutes(truth(quiet_rate=0))
    assert len(frame) == 1440
    assert (frame["open"].iloc[1:].to_numpy() - frame["close"].iloc[:-1]).abs().max() < 0.011
    for column in ("open", "high", "low", "close"):
        assert (frame[column].round(2) == frame[column]).all()
    assert (frame["high"] >= frame[["open", "close"]].max(axis=1)).all()
    assert (frame["low"] <= frame[["open", "close"]].min(axis=1)).all()
    assert (frame["low"] > 0).all()
    assert (frame["volume"] > 0).all()
    assert frame["close"].nunique() > 1000


def test_every_year_since_2015_has_candles() -> None:
    for year in range(2015, 2031):
        start = int(pd.Timestamp(year, 1, 1, tz="UTC").value // 1_000_000)
        assert len(minutes(truth(), start, start + 3 * MINUTE_MS)) == 3


def test_quiet_minutes_are_flat_where_the_exchange_fills_them() -> None:
    frame = minutes(truth(quiet_rate=0.4))
    quiet = frame["volume"] == 0
    assert 0.35 < quiet.mean() < 0.45
    assert len(frame) == 1440
    before = frame["close"].shift()
    for column in ("open", "high", "low", "close"):
        assert (frame[column] == before)[quiet].iloc[1:].all()


def test_quiet_minutes_are_absent_where_the_exchange_omits_them() -> None:
    omitted = minutes(truth("coinbaseexchange", quiet_rate=0.4))
    assert 0.55 < len(omitted) / 1440 < 0.65
    assert (omitted["volume"] > 0).all()


def test_an_outage_has_no_candles_and_ends_with_a_trade() -> None:
    frame = minutes(truth(quiet_rate=0.9, outages=[OUTAGE])).set_index("open_time")
    assert not frame.index.isin(range(OUTAGE[0], OUTAGE[1], MINUTE_MS)).any()
    assert OUTAGE[0] - MINUTE_MS in frame.index
    assert frame.loc[OUTAGE[1], "volume"] > 0


def test_candles_exist_from_listing_to_delisting() -> None:
    symbols = {"BTC/USDT": {"listed": LISTED, "delisted": DELISTED, "quiet_rate": 0.9}}
    frame = minutes(truth(symbols=symbols), START - DAY_MS, START + 2 * DAY_MS)
    assert frame["open_time"].iloc[0] == LISTED
    assert frame["volume"].iloc[0] > 0
    assert frame["open_time"].iloc[-1] == DELISTED - MINUTE_MS


@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h", "4h", "1d"])
@pytest.mark.parametrize("key", ["binance", "coinbaseexchange"])
def test_longer_candles_follow_the_trades(key: str, timeframe: str) -> None:
    """A quiet first minute must not open a longer candle: its price is older than the bucket."""
    of = truth(key, quiet_rate=0.7, outages=[OUTAGE])
    length = timeframe_ms(timeframe)
    got = of.candles(key, "BTC/USDT", timeframe, START, START + 2 * DAY_MS)
    frame = minutes(of, START, START + 2 * DAY_MS)
    frame["bucket"] = frame["open_time"] // length * length
    traded = frame[frame["volume"] > 0].groupby("bucket")
    expected = traded.agg(
        {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    )
    flat = frame[~frame["bucket"].isin(expected.index)].groupby("bucket").first()
    expected = pd.concat([expected, flat[list(expected.columns)]]).sort_index()
    assert got["open_time"].tolist() == expected.index.tolist()
    for column in ("open", "high", "low", "close"):
        assert got[column].tolist() == expected[column].tolist()
    assert np.allclose(got["volume"], expected["volume"], rtol=0, atol=1e-9)
    assert (got["volume"].round(5) == got["volume"]).all()


@pytest.mark.parametrize("quiet_rate", [0, 0.5])
def test_trades_add_up_to_the_candle_exactly(quiet_rate: float) -> None:
    of = truth(quiet_rate=quiet_rate)
    trades = of.trades("binance", "BTC/USDT", START, START + DAY_MS)
    assert trades["time_us"].is_monotonic_increasing
    assert trades["time_us"].is_unique
    assert trades["id"].is_unique
    assert (trades["amount"] > 0).all()
    trades["open_time"] = trades["time_us"] // 60_000_000 * MINUTE_MS
    trades["units"] = (trades["amount"] * 1e5).round().astype("int64")
    grouped = trades.groupby("open_time")
    got = grouped["price"].agg(["first", "max", "min", "last"])
    frame = minutes(of)
    frame = frame[frame["volume"] > 0].set_index("open_time")
    assert got.index.tolist() == frame.index.tolist()
    assert got.to_numpy().tolist() == frame[["open", "high", "low", "close"]].to_numpy().tolist()
    assert (grouped["units"].sum() / 1e5).tolist() == frame["volume"].tolist()


def test_the_forming_candle_grows_into_the_final_one() -> None:
    of = truth(quiet_rate=0)
    series = of.series("binance", "BTC/USDT")
    final = series.candles(5 * MINUTE_MS, START, START + 5 * MINUTE_MS)
    volumes = []
    for second in range(0, 300, 7):
        forming = series.forming(5 * MINUTE_MS, START + second * 1_000)
        assert forming.time.tolist() == [START]
        assert forming.high[0] <= final.high[0]
        volumes.append(float(forming.volume[0]))
    assert volumes == sorted(volumes)
    assert len(set(volumes)) > 15
    assert volumes[0] == 0
    last = series.forming(5 * MINUTE_MS, START + 299_999)
    assert last == type(last)(*(getattr(final, name) for name in final.__slots__))


def test_a_forming_candle_without_a_trade_is_flat_or_absent() -> None:
    flat = truth(quiet_rate=0.98).series("binance", "BTC/USDT")
    absent = truth("coinbaseexchange", quiet_rate=0.98).series("coinbaseexchange", "BTC/USDT")
    kinds = set()
    for minute in range(30):
        now = START + minute * MINUTE_MS + 30_000
        candle = flat.forming(MINUTE_MS, now)
        kinds.add(float(candle.volume[0]) == 0)
        assert len(candle) == 1
        kinds.add(len(absent.forming(MINUTE_MS, now)))
    assert {True, 0} <= kinds


def test_exchanges_agree_on_the_market() -> None:
    prices = {
        key: minutes(truth(key), START, START + 5 * MINUTE_MS)["close"].iloc[-1]
        for key in ("binance", "kraken", "coinbaseexchange")
    }
    assert len(set(prices.values())) == 3
    assert max(prices.values()) / min(prices.values()) < 1.05


def test_an_unknown_series_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kraken BTC/USD is not simulated.*binance BTC/USDT"):
        truth().candles("kraken", "BTC/USD", "1m", 0, 1)
