"""One cell that no JSON should hold costs its row, never the page it came in."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pandas as pd
import pytest

from crypto_pipeline.core.answers import Answer, observations_of
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rows import PlainRows
from crypto_pipeline.core.timeframes import MINUTE_MS
from crypto_pipeline.errors import BadAnswer
from crypto_pipeline.exchanges import strict
from crypto_pipeline.exchanges.strict import LISTING_CANDLES
from crypto_pipeline_tests.exchanges.canned import NOW, always, serving, wrapped

START = NOW // MINUTE_MS * MINUTE_MS - 5 * MINUTE_MS
#: As it stands in the body, and whether the cell is a number all the same.
CELLS = {
    "NaN": False,
    "-Infinity": False,
    "1e999": False,
    "1" + "0" * 400: False,
    "9" * 5_000: False,
    r'"\ud800"': False,
    r'"1\udfff"': False,
    r'"\u0000"': False,
    "0.5000000000000000000000000000000000001": True,
    "1e-400": False,  # zero
}


def asked(body: bytes, ccxt_id: str = "binance") -> Answer:
    async def run() -> Answer:
        async with serving(always(body)) as url, wrapped(ccxt_id, url) as wrapper:
            window = Interval(START, START + 3 * MINUTE_MS)
            return await wrapper.fetch(Series("BTC/USDT", "1m"), window)

    return asyncio.run(run())


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell[:12])
def test_the_rows_beside_it_are_read(cell: str) -> None:
    """Found by fuzzing: 1e999, ``10**400`` and half a surrogate pair made the page no JSON at all,
    and as such cells stay in an exchange's history, its gap could never heal."""
    row = '[{}, 0.5, 0.5, 0.5, {}, "1"]'
    rows = [row.format(START + n * MINUTE_MS, cell if n == 1 else 0.5) for n in range(3)]
    answer = asked(f"[{','.join(rows)}]".encode())
    read = observations_of(answer, run_id="", settle_ms=0)
    assert len(read) == 3
    assert read["close"].tolist()[::2] == [0.5, 0.5]
    if CELLS[cell]:
        assert read["close"].tolist() == [0.5] * 3
    elif cell != "1e-400":
        (received,) = read["received"].dropna()
        assert json.loads(received)[0] == START + MINUTE_MS


@pytest.mark.parametrize("ccxt_id", sorted(LISTING_CANDLES))
def test_a_page_that_is_read_the_fast_way_passes_through_ccxt(
    ccxt_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ccxt's class must hand the very list on, and may look into no row of it."""
    coinbase = ccxt_id == "coinbaseexchange"
    unit = 1_000 if coinbase else 1
    rows = [[(START + n * MINUTE_MS) // unit, "1", "4", "2", "3.5", f"{n}", 0] for n in range(20)]
    body = json.dumps(rows).encode()

    def read() -> tuple[Any, pd.DataFrame]:
        answer = asked(body, ccxt_id)
        return type(answer.rows), observations_of(answer, run_id="", settle_ms=0)

    fast, columns = read()
    assert fast is PlainRows
    monkeypatch.setattr(strict, "LISTING_CANDLES", frozenset())
    careful, expected = read()
    assert careful is list
    pd.testing.assert_frame_equal(columns, expected)
    assert columns["close"].unique().tolist() == [3.5]


@pytest.mark.parametrize(
    "body", [b"[[1,2,]]", b"[1e]", b'["\x01"]', b"[[1]] x", b"{'a': 1}", b"[01]"]
)
def test_what_is_no_json_is_still_none(body: bytes) -> None:
    with pytest.raises(BadAnswer, match="instead of JSON"):
        asked(body)
