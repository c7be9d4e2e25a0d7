"""Answers that real exchanges gave, served again: the same numbers, the forming candle told apart."""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web

from crypto_pipeline.core.answers import Answer, observations_of
from crypto_pipeline.core.candles import VALUES
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.habits import habits_of
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.judging import judge_answers
from crypto_pipeline.core.timeframes import DAY_MS, timeframe_ms
from crypto_pipeline_tests.exchanges.canned import NOW, serving, wrapped

NAMES = ["binance", "coinbaseexchange", "gemini", "kraken", "kraken_1h_since"]


@pytest.fixture(params=NAMES)
def recorded(shared_data: Path, request: pytest.FixtureRequest) -> Any:
    return load(shared_data, request.param)


def load(shared_data: Path, name: str) -> Any:
    return json.loads((shared_data / "answers" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_recorded_answer_is_replayed(shared_data: Path) -> None:
    """A file that is added to the folder is a case here."""
    assert sorted(path.stem for path in (shared_data / "answers").iterdir()) == NAMES


def window_of(recorded: Any) -> Interval:
    """What ccxt's candles fill."""
    rows = recorded["parsed_by_ccxt_4_5_90"]
    return Interval(rows[0][0], rows[-1][0] + timeframe_ms(recorded["timeframe"]))


def replayed(recorded: Any, *, now: int) -> Answer:
    """The answer through our wrapper and genuine ccxt, at an instant of both clocks."""

    def handler(request: web.Request) -> web.Response:
        assert f"/{recorded['request_path']}".endswith(request.path)
        date = formatdate(now // 1_000, usegmt=True)
        return web.json_response(recorded["response"], headers={"Date": date})

    async def run() -> Answer:
        async with (
            serving(handler) as url,
            wrapped(
                recorded["exchange"],
                url,
                symbol=recorded["symbol"],
                market_id=recorded["market_id"],
            ) as wrapper,
        ):
            wrapper._clock = wrapper._ccxt.clock = lambda: now
            series = Series(recorded["symbol"], recorded["timeframe"])
            return await wrapper.fetch(series, window_of(recorded))

    return asyncio.run(run())


def observed(recorded: Any, *, now: int) -> pd.DataFrame:
    """Our observations of it, their times as int64 ms."""
    answer = replayed(recorded, now=now)
    settle_ms = habits_of(recorded["exchange"]).settle_ms
    frame = observations_of(answer, run_id="r", settle_ms=settle_ms)
    return frame.assign(open_time=frame["open_time"].dt.tz_localize(None).astype("int64"))


def test_the_numbers_are_those_of_ccxt(recorded: Any) -> None:
    """Ours are converted in bulk, without ccxt's parser, sorting and filters.

    We keep every row that came. ccxt drops what it was not asked for: in ``kraken_1h_since`` the
    candle before ``since`` and those after ``limit``.
    """
    window = window_of(recorded)
    ours = observed(recorded, now=NOW + DAY_MS)
    assert ours["received"].isna().all()
    asked = ours[ours["open_time"].between(*window, inclusive="left")]
    assert asked[["open_time", *VALUES]].to_numpy().tolist() == recorded["parsed_by_ccxt_4_5_90"]
    if recorded["limit"] is None:
        assert len(asked) == len(ours)


def test_the_last_row_is_final_once_its_candle_is_over_and_the_others_always(
    recorded: Any,
) -> None:
    """While its candle goes on, and two seconds longer, it may change; a later row ends the others."""
    length = timeframe_ms(recorded["timeframe"])
    rows = observed(recorded, now=NOW + DAY_MS)
    assert rows["final"].all()
    end = rows["open_time"].iloc[-1] + length
    settle_ms = habits_of(recorded["exchange"]).settle_ms
    for now in (end - length + 1_000, end - length // 2, end, end + settle_ms - 1_000):
        final = observed(recorded, now=now)["final"].tolist()
        assert final == [True] * (len(rows) - 1) + [False]
    assert observed(recorded, now=end + settle_ms)["final"].all()


def test_of_krakens_whole_answer_all_is_settled_but_the_forming_candle(shared_data: Path) -> None:
    """720 committed candles, 216 of them without trades, when it was recorded."""
    recorded = load(shared_data, "kraken")
    habits = habits_of("kraken")
    answer = replayed(recorded, now=NOW)
    rows = observations_of(answer, run_id="r", settle_ms=habits.settle_ms)
    assert len(rows) == 721
    assert rows["final"].sum() == 720
    assert (rows["volume"] == 0).sum() == 216
    (judged,) = judge_answers([answer], rows, quiet=habits.quiet, settle_ms=habits.settle_ms)
    forming = recorded["parsed_by_ccxt_4_5_90"][-1][0]
    assert judged.settled == (Interval(answer.window.start, forming),)
    assert judged.settled[0].end - judged.settled[0].start == 720 * 60_000
    assert (judged.silent, judged.rejected, judged.empty, judged.note) == ((), (), False, "")
