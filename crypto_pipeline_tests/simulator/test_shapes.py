"""The simulator's answers have the shape of recorded real ones, type by type."""

import json
import re
from typing import Any

import pytest

from crypto_pipeline_tests.simulator.conftest import MINUTE, SHARED
from crypto_pipeline_tests.simulator.http_calls import get

ANSWERS = SHARED / "answers"
PATHS = {
    "binance": "api/v3/klines?symbol=BTCUSDT&interval=1m&limit=10",
    "kraken": "0/public/OHLC?pair=XBTUSDC&interval=1",
    "coinbaseexchange": f"products/BTC-USD/candles?granularity=3600"
    f"&start={MINUTE // 1000 - 7200}&end={MINUTE // 1000}",
}


def shape(value: Any) -> Any:
    """JSON types; text that is a number is told from other text, and so are its decimals."""
    match value:
        case dict():
            return {
                "pair" if re.fullmatch("X?XBT.*", key) else key: shape(item)
                for key, item in value.items()
            }
        case list():
            return [shape(item) for item in value]
        case str():
            return f"text .{len(value.partition('.')[2])}" if "." in value else "text"
        case bool() | None:
            return value
        case _:
            return "number"


@pytest.mark.skipif(not ANSWERS.is_dir(), reason="the recorded answers are not on this machine")
@pytest.mark.parametrize("key", PATHS)
def test_answers_look_like_recorded_ones(simulator, key) -> None:
    recorded = json.loads((ANSWERS / f"{key}.json").read_text())["response"]
    served = json.loads(get(f"{simulator.urls[key]}/{PATHS[key]}")[2])
    if key == "kraken":
        # Another pair with other price decimals; the recorded answer has one decimal.
        served = json.loads(re.sub(r'\.(\d)\d"', r'.\1"', json.dumps(served)))
        assert len(served["result"]["XBTUSDC"]) == len(recorded["result"]["XBTUSDT"]) == 721
        assert shape(served) == shape(recorded)
    else:
        assert shape(served[0]) == shape(recorded[0])
    if key == "binance":
        assert shape(served) == shape(recorded)
        assert served[0][6] - served[0][0] == recorded[0][6] - recorded[0][0]
