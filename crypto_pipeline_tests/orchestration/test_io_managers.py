"""What a partition's page shows of what was stored."""

from __future__ import annotations

import pandas as pd

from crypto_pipeline.orchestration.io_managers import _SHOWN, _newest
from crypto_pipeline_tests.database.frames import candles


def test_the_newest_candle_of_each_series_is_shown() -> None:
    """Also of two timeframes of one symbol, whose codes alone are alike."""
    minutes = candles(["BTC/USDT", "ETH/USDT"], minutes=3)
    fives = candles(["BTC/USDT"], minutes=2).assign(timeframe="5m")
    frame = pd.concat([minutes, fives]).astype({"symbol": "category", "timeframe": "category"})
    table = _newest(frame)
    last = frame.groupby(["symbol", "timeframe"], observed=True, sort=False).tail(1)
    shown = [record.data for record in table.records]
    assert shown == [
        {
            **{name: row[name] for name in ("symbol", "timeframe", "open", "high", "low", "close")},
            "volume": row["volume"],
            "open_time": str(row["open_time"]),
        }
        for row in last.to_dict("records")
    ]
    assert [column.type for column in table.schema.columns] == ["string"] * 3 + ["float"] * 5


def test_a_page_shows_a_few_of_many_series() -> None:
    frame = candles([f"S{number:03}/USDT" for number in range(_SHOWN + 5)], minutes=2)
    frame = frame.astype({"symbol": "category", "timeframe": "category"})
    assert len(_newest(frame).records) == _SHOWN
    assert _newest(frame.iloc[:0]).records == []
