"""Our bulk conversion of rows gives, number for number, what ccxt's own ``parse_ohlcv`` gives."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytest

from crypto_pipeline.core.answers import Answer, observations_of
from crypto_pipeline.core.candles import VALUES
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.habits import HABITS
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import MINUTE_MS, timeframe_ms
from crypto_pipeline.errors import BadAnswer
from crypto_pipeline_tests.exchanges.canned import NOW, always, as_sent, serving, wrapped

_START: Final = NOW // MINUTE_MS * MINUTE_MS - 5 * MINUTE_MS
_WINDOW: Final = Interval(_START, _START + 3 * MINUTE_MS)
#: Time, open, high, low, close, volume: with digits that a detour over text or float32 would lose.
_CANDLES: Final = [
    (_START, 0.1, 73_402.47000001, 1e-8, 0.30000000000000004, 123_456_789.12345678),
    (_START + MINUTE_MS, 106_038.2, 106_038.3, 106_038.1, 106_038.2, 0.0),
    (_START + 2 * MINUTE_MS, 2.0, 3.0, 1.0, 2.5, 7.0),
]


def _text(value: float) -> str:
    return f"{value:.17g}"


def _rows(order: str, *, unit: int = 1, text: bool = True, time_text: bool = True) -> list[Any]:
    """Rows in an exchange's order of columns: t o h l c v, and x for one that does not count."""
    rows = []
    for candle in _CANDLES:
        named = dict(zip("tohlcv", candle, strict=True))
        row: list[Any] = []
        for letter in order:
            if letter == "t":
                time = candle[0] // unit
                row.append(str(time) if time_text else time)
            else:
                value = named.get(letter, 987_654.321)
                row.append(_text(value) if text else value)
        rows.append(row)
    return rows


def _named(names: dict[str, str], *, unit: int = 1, text: bool = True) -> list[Any]:
    return [
        {
            name: (str if text else int)(candle[0] // unit)
            if letter == "t"
            else (_text if text else float)(candle["tohlcv".index(letter)])
            for letter, name in names.items()
        }
        for candle in _CANDLES
    ]


#: What each exchange of the table of habits sends for its candles, as its documentation shows it.
ANSWERS: Final[dict[str, Any]] = {
    "binance": _rows("tohlcvxx", time_text=False),
    "binanceus": _rows("tohlcvxx", time_text=False),
    "kraken": {
        "error": [],
        "result": {
            "BTCUSDT": _rows("tohlcxvx", unit=1_000, time_text=False),
            "last": _START // 1_000,
        },
    },
    "coinbase": {
        "candles": _named(
            {"t": "start", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"},
            unit=1_000,
        )
    },
    "coinbaseexchange": _rows("tlhocv", unit=1_000, text=False, time_text=False)[::-1],
    "okx": {"code": "0", "msg": "", "data": _rows("tohlcvxxx")[::-1]},
    "bybit": {"retCode": 0, "retMsg": "OK", "result": {"list": _rows("tohlcvx")[::-1]}},
    "kucoin": {"code": "200000", "data": _rows("tochlvx", unit=1_000)[::-1]},
    "gate": _rows("txchlovx", unit=1_000),
    "bitfinex": _rows("tochlv", text=False, time_text=False),
    "bitstamp": {
        "data": {
            "pair": "BTC/USDT",
            "ohlc": _named(
                {"t": "timestamp", "o": "open", "h": "high", "l": "low", "c": "close",
                 "v": "volume"},
                unit=1_000,
            ),
        }
    },
    "gemini": _rows("tohlcv", text=False, time_text=False)[::-1],
    "mexc": _rows("tohlcvxx", time_text=False),
    "htx": {
        "status": "ok",
        "data": _named(
            {"t": "id", "o": "open", "h": "high", "l": "low", "c": "close", "v": "amount"},
            unit=1_000,
            text=False,
        )[::-1],
    },
    "cryptocom": {
        "code": 0,
        "result": {
            "data": _named({"t": "t", "o": "o", "h": "h", "l": "l", "c": "c", "v": "v"})
        },
    },
    "bitget": {"code": "00000", "msg": "success", "data": _rows("tohlcvxx")},
    "hyperliquid": _named({"t": "t", "o": "o", "h": "h", "l": "l", "c": "c", "v": "v"}),
}  # fmt: skip


def test_every_exchange_of_the_table_has_an_answer_here() -> None:
    """A new entry in the table of habits comes with the shape of its answers."""
    assert set(ANSWERS) == set(HABITS)


def _observed(answer: Answer) -> pd.DataFrame:
    frame = observations_of(answer, run_id="r", settle_ms=0)
    return frame[["open_time", *VALUES]].assign(
        open_time=frame["open_time"].dt.tz_localize(None).astype("int64")
    )


def _by_ccxt(exchange: Any, rows: list[Any], symbol: str) -> pd.DataFrame:
    market = exchange.market(symbol)
    parsed = [type(exchange).__mro__[2].parse_ohlcv(exchange, row, market) for row in rows]
    return pd.DataFrame(parsed, columns=["open_time", *VALUES]).astype(
        {"open_time": "int64", **dict.fromkeys(VALUES, "float64")}
    )


def _fetched(
    ccxt_id: str,
    content: Any,
    *,
    market_id: str = "BTCUSDT",
    timeframe: str = "1m",
    window: Interval = _WINDOW,
) -> tuple[Answer, pd.DataFrame]:
    """Our answer, and what ccxt makes of the same rows one by one."""

    async def run() -> tuple[Answer, pd.DataFrame]:
        async with (
            serving(always(content)) as url,
            wrapped(ccxt_id, url, market_id=market_id) as wrapper,
        ):
            taken: list[Any] = []
            genuine = wrapper._ccxt.parse_ohlcvs

            def noted(rows: list[Any], *args: Any) -> list[Any]:
                taken.extend(as_sent(rows))
                return genuine(rows, *args)

            wrapper._ccxt.parse_ohlcvs = noted
            answer = await wrapper.fetch(Series("BTC/USDT", timeframe), window)
            return answer, _by_ccxt(wrapper._ccxt, taken, "BTC/USDT")

    return asyncio.run(run())


@pytest.mark.parametrize("ccxt_id", HABITS)
def test_the_answer_of_every_exchange_is_read_as_ccxt_reads_it(ccxt_id: str) -> None:
    """Through genuine ccxt and a socket: the rows are found, and each number is in its column."""
    answer, by_ccxt = _fetched(ccxt_id, ANSWERS[ccxt_id])
    observed = _observed(answer)
    pd.testing.assert_frame_equal(observed, by_ccxt, check_exact=True)
    truth = pd.DataFrame(_CANDLES, columns=["open_time", *VALUES])
    pd.testing.assert_frame_equal(
        observed.sort_values("open_time", ignore_index=True), truth, check_exact=True
    )


@pytest.mark.parametrize("ccxt_id", HABITS)
def test_pages_are_read_in_bulk(ccxt_id: str) -> None:
    """The layout, places or names, is learnt from ccxt: no page goes through it candle by candle."""
    answer, _ = _fetched(ccxt_id, ANSWERS[ccxt_id])
    assert json.dumps(as_sent(answer.rows)) in json.dumps(ANSWERS[ccxt_id])
    assert isinstance(answer.rows[0], dict) == isinstance(answer.layout.positions[0], str)


@pytest.mark.parametrize("ccxt_id", ["coinbase", "bitstamp", "htx", "cryptocom", "hyperliquid"])
@pytest.mark.parametrize("cell", [True, "1_000", "\uff11\uff12", " 1 ", [1], "1e999"])
def test_what_ccxt_takes_for_a_number_is_none(ccxt_id: str, cell: object) -> None:
    """Found by fuzzing: rows that are objects went through ccxt, which read ``True`` as 1.0.

    And a refused row showed what ccxt had made of it instead of what came.
    """
    content = json.loads(json.dumps(ANSWERS[ccxt_id]))
    row = _objects(content)[1]
    name = next(name for name in row if name in ("h", "high"))
    row[name] = cell
    answer, _ = _fetched(ccxt_id, content)
    read = observations_of(answer, run_id="", settle_ms=0)
    assert read["high"].isna().sum() + (read["high"] == float("inf")).sum() == 1
    (received,) = read["received"].dropna()
    assert json.loads(received) == row


def test_an_object_among_lists_is_refused_and_changes_nothing_else() -> None:
    """Found by fuzzing: one object sent the whole page through ccxt, which reads less strictly."""
    content = json.loads(json.dumps(ANSWERS["binance"]))
    content[0][2] = "1_000"
    content.append({"open": "1"})

    async def run() -> Answer:
        async with serving(always(content)) as url, wrapped("binance", url) as wrapper:
            return await wrapper.fetch(Series("BTC/USDT", "1m"), _WINDOW)

    read = observations_of(asyncio.run(run()), run_id="", settle_ms=0)
    assert read["received"].notna().tolist() == [True, False, False, True]


def _objects(content: Any) -> list[dict[str, Any]]:
    """The rows, wherever they are."""
    if isinstance(content, list) and content and "1" not in content and len(content) > 1:
        return content
    inner = content.values() if isinstance(content, dict) else content
    return next(filter(None, map(_objects, (i for i in inner if isinstance(i, list | dict)))), [])


@pytest.mark.parametrize("ccxt_id", HABITS)
@pytest.mark.parametrize("body", [b"{}", b'{"unexpected": [[1, 2, 3, 4, 5, 6]]}', b"<html>", b""])
def test_no_exchange_of_the_table_takes_a_wrong_shape_for_no_candles(
    ccxt_id: str, body: bytes
) -> None:
    """ccxt's ``safe_list(…, [])`` turns any other object into an empty page."""

    async def run() -> None:
        async with serving(always(body)) as url, wrapped(ccxt_id, url) as wrapper:
            await wrapper.fetch(Series("BTC/USDT", "1m"), _WINDOW)

    with pytest.raises(BadAnswer):
        asyncio.run(run())


#: bitget has answered with a bare list, too, and ccxt takes either.
_LIST_BODIES: Final = {
    "bitget",
    *(key for key, content in ANSWERS.items() if isinstance(content, list)),
}


@pytest.mark.parametrize("ccxt_id", HABITS)
def test_an_empty_list_is_an_answer_only_where_the_body_is_the_list(ccxt_id: str) -> None:
    """``[]`` from an exchange that answers with an object is not "no candles"."""

    async def run() -> Answer:
        async with serving(always(b"[]")) as url, wrapped(ccxt_id, url) as wrapper:
            return await wrapper.fetch(Series("BTC/USDT", "1m"), _WINDOW)

    if ccxt_id in _LIST_BODIES:
        assert asyncio.run(run()).rows == []
    else:
        with pytest.raises(BadAnswer):
            asyncio.run(run())


@pytest.mark.parametrize(
    "name", ["binance", "coinbaseexchange", "gemini", "kraken", "kraken_1h_since"]
)
def test_recorded_answers_are_read_as_ccxt_read_them(name: str, shared_data: Path) -> None:
    """Whole answers of real exchanges, 721 rows of Kraken's among them."""
    recorded = json.loads((shared_data / f"answers/{name}.json").read_text())
    length = timeframe_ms(recorded["timeframe"])
    theirs = pd.DataFrame(recorded["parsed_by_ccxt_4_5_90"], columns=["open_time", *VALUES]).astype(
        {"open_time": "int64", **dict.fromkeys(VALUES, "float64")}
    )
    start = int(theirs["open_time"].min())
    answer, by_ccxt = _fetched(
        recorded["exchange"],
        recorded["response"],
        market_id=recorded["market_id"],
        timeframe=recorded["timeframe"],
        window=Interval(start, start + length * len(theirs)),
    )
    observed = _observed(answer)
    pd.testing.assert_frame_equal(observed, by_ccxt, check_exact=True)
    kept = observed[observed["open_time"].isin(theirs["open_time"])]
    pd.testing.assert_frame_equal(
        kept.sort_values("open_time", ignore_index=True), theirs, check_exact=True
    )
