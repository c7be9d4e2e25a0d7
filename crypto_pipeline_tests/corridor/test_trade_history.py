"""Candles built from the exchange's trades, where its candles no longer reach, are the true ones."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest

from crypto_pipeline.core.candles import OBSERVATION_DTYPES, VALUES
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.rules import times_ms
from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, timeframe_ms
from crypto_pipeline.errors import BadAnswer, ExchangeError, ExchangeUnavailable
from crypto_pipeline.simulator import SimulatorHandle
from crypto_pipeline_tests.corridor.streams import (
    NOW,
    SYMBOL,
    TODAY,
    arrived,
    assert_true,
    frame_of,
    stream,
)
from crypto_pipeline_tests.exchanges.tape import PAIR

HOURS = Interval(TODAY - 30 * DAY_MS, TODAY - 30 * DAY_MS + 8 * 60 * MINUTE_MS)


def test_thirty_days_of_minutes_beyond_the_reach_of_the_candles_are_the_true_ones(
    simulator: SimulatorHandle,
) -> None:
    """The OHLC endpoint serves the newest 720 candles: half a day. The rest comes from the trades."""
    span = Interval(TODAY - 31 * DAY_MS, TODAY - DAY_MS)
    batches, error = stream(simulator, {"1m": span})
    assert error is None
    frame = frame_of(batches)
    assert_true(simulator, frame, "1m", span)
    assert 25_000 < len(frame) < 30 * 1_440  # three minutes in ten had no trade, and have no row
    assert batches[-1].covered == {"1m": span}
    assert sum(batch.requests for batch in batches) == len(arrived(simulator))
    trades = simulator.truth.trades("kraken", SYMBOL, *span)
    assert 0 <= sum(batch.trades for batch in batches) - len(trades) < 1_000


def test_several_timeframes_come_from_one_stream_each_in_its_span(
    simulator: SimulatorHandle,
) -> None:
    """The trades cost a request a page; nobody asks for them twice."""
    spans = {
        "1m": Interval(TODAY - 7 * DAY_MS + 17 * MINUTE_MS, TODAY - 5 * DAY_MS + 3 * MINUTE_MS),
        "15m": Interval(TODAY - 6 * DAY_MS, TODAY - 4 * DAY_MS + 15 * MINUTE_MS),
        "4h": Interval(TODAY - 7 * DAY_MS + 4 * 60 * MINUTE_MS, TODAY - 6 * DAY_MS),
        "1d": Interval(TODAY - 6 * DAY_MS, TODAY - 3 * DAY_MS),
    }
    batches, error = stream(simulator, spans, flush_after=2)
    assert error is None
    for timeframe, span in spans.items():
        assert_true(simulator, frame_of(batches), timeframe, span)
    assert batches[-1].covered == spans
    pages = [request["params"]["since"] for request in arrived(simulator)]
    assert len(pages) == len(set(pages))


def test_batches_join_without_overlap_and_say_what_they_are(simulator: SimulatorHandle) -> None:
    """`covered` grows, `added` is what grew, and the rows are the rows of `added`."""
    spans = {"1m": HOURS, "1h": HOURS}
    batches, _ = stream(simulator, spans, flush_after=1)
    assert len(batches) > 1
    reached = dict.fromkeys(spans, HOURS.start)
    for batch in batches:
        for name, added in batch.added.items():
            assert added.start == reached[name] < added.end
            assert added.end % timeframe_ms(name) == 0
            assert batch.covered[name] == Interval(HOURS.start, added.end)
            reached[name] = added.end
        for name, rows in batch.observations.groupby("timeframe", observed=True):
            assert all(time in batch.added[str(name)] for time in times_ms(rows["open_time"]))
        frame = batch.observations
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
            name: str(pd.api.types.pandas_dtype(dtype))
            for name, dtype in OBSERVATION_DTYPES.items()
        }
        assert set(frame["source"]) <= {"trades"}
        assert set(frame["run_id"]) <= {"run-7"}
        assert frame["final"].all()
        assert frame["received"].isna().all()
        assert set(times_ms(frame["fetched_at"])) <= {NOW}
        assert batch.at == NOW
    assert reached == dict.fromkeys(spans, HOURS.end)


def test_a_stream_that_was_abandoned_is_resumed_from_what_it_covered(
    simulator: SimulatorHandle,
) -> None:
    """A run that is killed has yielded, and loses no more than what it had not."""
    whole, _ = stream(simulator, {"1m": HOURS}, flush_after=1)
    requests = len(arrived(simulator))
    simulator.control.reset()
    half, _ = stream(simulator, {"1m": HOURS}, flush_after=1, most=len(whole) // 2)
    border = half[-1].covered["1m"].end
    assert HOURS.start < border < HOURS.end
    rest, _ = stream(simulator, {"1m": Interval(border, HOURS.end)}, flush_after=1)
    assert len(arrived(simulator)) <= requests + 1
    frame = frame_of([*half, *rest])
    assert_true(simulator, frame, "1m", HOURS)
    pd.testing.assert_frame_equal(
        frame[list(VALUES)], frame_of(whole)[list(VALUES)], rtol=1e-12, atol=0
    )


def test_parts_that_lie_apart_are_streamed_apart(simulator: SimulatorHandle) -> None:
    """A day that is missing, and one of two weeks before: not the trades of all days between."""
    spans = {
        "1m": Interval(TODAY - 2 * DAY_MS, TODAY - 2 * DAY_MS + 60 * MINUTE_MS),
        "5m": Interval(TODAY - 16 * DAY_MS, TODAY - 16 * DAY_MS + 60 * MINUTE_MS),
    }
    batches, error = stream(simulator, spans)
    assert error is None
    for timeframe, span in spans.items():
        assert_true(simulator, frame_of(batches), timeframe, span)
    assert len(arrived(simulator)) == 2


@pytest.mark.parametrize("span", [(30_000, 60_000), (0, 90_000)])
def test_an_end_off_the_grid_is_refused(simulator: SimulatorHandle, span: tuple[int, int]) -> None:
    """Half a candle would be taken for a whole one."""
    with pytest.raises(ValueError, match="not on the grid of 1m"):
        stream(simulator, {"1m": Interval(*span)})


FAULTS: dict[str, tuple[dict[str, Any], type[ExchangeError]]] = {
    "html": ({"act": "body", "body": "html"}, BadAnswer),
    "503": ({"act": "status", "status": 503, "body": "html"}, ExchangeUnavailable),
    "empty result": ({"act": "body", "body": '{"error": [], "result": {}}'}, BadAnswer),
    "no rows": (
        {
            "act": "body",
            "body": f'{{"error": [], "result": {{"{PAIR}": [], "last": "{NOW}000000"}}}}',
        },
        BadAnswer,
    ),
    "wrong pair": ({"act": "wrong_pair"}, BadAnswer),
    "cut gzip": ({"act": "cut_gzip"}, BadAnswer),
    "drop in mid body": ({"act": "drop_mid_body"}, ExchangeUnavailable),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_middle_is_told_after_what_was_complete(
    simulator: SimulatorHandle, name: str
) -> None:
    """Nothing that came before it is lost, nothing is blurred, and a rerun goes on from there."""
    fault, kind = FAULTS[name]
    simulator.control.add_fault(exchange="kraken", endpoint="trades", nth=2, **fault)
    batches, error = stream(simulator, {"1m": HOURS})
    assert type(error) is kind
    assert error.rerun_helps
    covered = batches[-1].covered["1m"]
    assert HOURS.start < covered.end < HOURS.end
    assert_true(simulator, frame_of(batches), "1m", covered)
    simulator.control.clear_faults()
    rest, error = stream(simulator, {"1m": Interval(covered.end, HOURS.end)})
    assert error is None
    assert_true(simulator, frame_of([*batches, *rest]), "1m", HOURS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_costs_an_attempt_and_no_trade(
    simulator: SimulatorHandle, name: str
) -> None:
    simulator.control.add_fault(exchange="kraken", endpoint="trades", nth=2, **FAULTS[name][0])
    batches, error = stream(simulator, {"1m": HOURS}, attempts=2)
    assert error is None
    assert_true(simulator, frame_of(batches), "1m", HOURS)


def test_a_fault_of_the_first_page_yields_nothing(simulator: SimulatorHandle) -> None:
    simulator.control.add_fault(act="status", status=503, exchange="kraken", endpoint="trades")
    batches, error = stream(simulator, {"1m": HOURS})
    assert batches == []
    assert type(error) is ExchangeUnavailable


def test_a_stream_to_the_present_ends_at_the_last_minute_that_is_over(
    simulator: SimulatorHandle,
) -> None:
    """The forming minute is not a candle yet; the span may reach beyond it."""
    minute = NOW // MINUTE_MS * MINUTE_MS
    span = Interval(minute - 90 * MINUTE_MS, minute + 60 * MINUTE_MS)
    batches, error = stream(simulator, {"1m": span})
    assert error is None
    covered = batches[-1].covered["1m"]
    assert covered == Interval(span.start, minute)
    assert_true(simulator, frame_of(batches), "1m", covered)


def test_a_minute_that_closed_a_moment_ago_is_left_for_later(simulator: SimulatorHandle) -> None:
    """Closed for less than ``settle_ms`` by the exchange's clock, and no later trade: not final."""
    minute = NOW // MINUTE_MS * MINUTE_MS
    trades = simulator.truth.trades("kraken", SYMBOL, minute, minute + 3 * MINUTE_MS)
    over = minute + MINUTE_MS
    assert not ((trades["time_us"] >= over * 1_000) & (trades["time_us"] < over * 1_000 + 10)).any()
    simulator.control.set_clock(frozen_at=over)
    span = Interval(minute - 10 * MINUTE_MS, over)
    batches, error = stream(simulator, {"1m": span})
    assert error is None
    assert batches[-1].covered["1m"] == Interval(span.start, minute)


@pytest.mark.timeout(900)
def test_five_million_trades_fit_into_300_megabytes(simulator: SimulatorHandle) -> None:
    """All of the consuming process, its libraries included, over real sockets through genuine ccxt."""
    days = 850
    span = Interval(TODAY - (days + 1) * DAY_MS, TODAY - DAY_MS)
    task = {
        "ccxt": simulator.ccxt_config("kraken"),
        "symbol": SYMBOL,
        "start": span.start,
        "end": span.end,
    }
    done = subprocess.run(
        [sys.executable, "-m", "crypto_pipeline_tests.corridor.streaming", json.dumps(task)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    said = json.loads(done.stdout)
    assert said["trades"] >= 5_000_000
    assert said["peak_mb"] < 300
    truth = simulator.truth.candles("kraken", SYMBOL, "1m", *span)
    truth = truth[truth["volume"] > 0]
    assert said["candles"] == len(truth)
    assert said["volume"] == pytest.approx(truth["volume"].sum(), rel=1e-9)
    assert said["close"] == pytest.approx(truth["close"].sum(), rel=1e-9)
    sys.stdout.write(f"{said}\n")
