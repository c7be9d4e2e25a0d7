"""Every failure ccxt turns into "no candles", on every dialect: never green, never unlabelled, healed.

Facts: HTTP 200 with HTML, cut JSON, ``null``, nothing, 204, a cut gzip stream, 52x, ``{}``, another
pair's name, rows of None; and answers that are refused for their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import pytest

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline.simulator.client import SimulatorControl
from crypto_pipeline_tests.integration.deployment_model import Deployment, loaded
from crypto_pipeline_tests.pipelines import Pipeline, results

TODAY = date(2024, 3, 15)
DAY = date(2024, 3, 14)
START = day_start_ms(DAY)
NOW = START + DAY_MS + 10 * 3_600_000 + 20_000
FAULTS = {
    "HTML": {"act": "body", "body": "html"},
    "cut JSON": {"act": "cut_json"},
    "null": {"act": "body", "body": "null"},
    "nothing": {"act": "body", "body": "empty"},
    "an empty list": {"act": "body", "body": "list", "content_type": "application/json"},
    "204": {"act": "no_content"},
    "cut gzip": {"act": "cut_gzip"},
    "520": {"act": "status", "status": 520},
    "523": {"act": "status", "status": 523},
    "524": {"act": "status", "status": 524},
    "527": {"act": "status", "status": 527},
    "529": {"act": "status", "status": 529},
    "{}": {"act": "body", "body": "object", "content_type": "application/json"},
    "another pair": {"act": "wrong_pair"},
    "rows of None": {"act": "bad_candles", "spoil": "null_row"},
    "a connection cut in mid-body": {"act": "drop_mid_body"},
    "10 million rows": {"act": "large", "megabytes": 140},
    "a bomb": {"act": "bomb", "encoding": "gzip", "megabytes": 100},
}
SYMBOL = {"binance": "BTC/USDT", "kraken": "BTC/USD", "coinbaseexchange": "BTC/USD"}
CASES = [
    (exchange, failure)
    for failure in FAULTS
    for exchange in SYMBOL
    if failure != "another pair" or exchange == "kraken"  # only its answers name a pair
]


@pytest.fixture(scope="module")
def exchanges() -> Iterator[SimulatorHandle]:
    config = SimulatorConfig.parse(
        {
            "clock": {"frozen_at": NOW},
            "exchanges": {
                key: {"symbols": [symbol, f"ETH/{symbol.split('/')[1]}"], "quiet_rate": 0.1}
                for key, symbol in SYMBOL.items()
            },
        },
        origin="the test",
    )
    with running_simulator(config) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def make(
    exchanges: SimulatorHandle,
    new_database: Callable[[], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Deployment]:
    url, home = new_database(), tmp_path_factory.mktemp("model")

    def fresh(exchange: str) -> Deployment:
        exchanges.control.reset()
        section = {
            "symbols": list(exchanges.config.exchanges[exchange].symbols),
            "start": DAY,
            "ccxt": exchanges.ccxt_config(exchange),
            "retry": {"attempts": 2, "first_wait_seconds": 0.01},
            "timeout_seconds": 5,
        }
        return Deployment(exchanges, loaded({"exchanges": {exchange: section}}), url, home, NOW)

    return fresh


def fail(control: SimulatorControl, exchange: str, failure: str) -> None:
    """From now on all answers about the one symbol are like that."""
    fault = dict(FAULTS[failure])
    if fault["act"] == "bad_candles":
        fault["open_times"] = list(range(START, START + 2 * DAY_MS, MINUTE_MS))
    symbol = SYMBOL[exchange]
    control.add_fault(exchange=exchange, endpoint="candles", symbol=symbol, **fault)
    control.add_fault(exchange=exchange, endpoint="trades", symbol=symbol, act="body", body="html")


@pytest.mark.parametrize(("exchange", "failure"), CASES)
def test_a_soft_failure_is_a_labelled_hole_and_the_next_good_answer_fills_it(
    make: Callable[[str], Deployment], exchange: str, failure: str
) -> None:
    """One symbol's answers are all like that: its hole is named, the partition red, then healed."""
    candles, symbol = make(exchange), SYMBOL[exchange]
    fail(candles.simulator.control, exchange, failure)
    candles.run(exchange, [TODAY])
    assert candles.states() == {TODAY: False}
    assert symbol not in set(candles.candles()["symbol"])
    causes = {
        minute: cause
        for _, of, start, end, cause in candles.gaps()
        for minute in range(start, end, MINUTE_MS)
        if of == symbol
    }
    due = (NOW - 180_000) // MINUTE_MS * MINUTE_MS
    assert sorted(causes) == list(range(START + DAY_MS, due, MINUTE_MS))
    expected = {
        # kraken's answers are objects: a list is no answer of its
        "an empty list": {"fetch_failed" if exchange == "kraken" else "unknown"},
        "rows of None": {"rejected"},
    }.get(failure, {"fetch_failed"})
    assert set(causes.values()) == expected

    candles.simulator.control.clear_faults()
    candles.at(NOW + 2 * MINUTE_MS)
    candles.run(exchange, [TODAY])
    assert candles.states() == {TODAY: True}
    truth = candles.truth(candles.now // MINUTE_MS * MINUTE_MS)
    truth = truth[truth["open_time"] >= START + DAY_MS].reset_index(drop=True)
    assert candles.candles().equals(truth)
    assert {cause for *_, cause in candles.gaps()} <= {"no_trades"}


@pytest.mark.parametrize(("exchange", "failure"), [*zip(SYMBOL, FAULTS, strict=False)])
def test_the_partition_is_red_in_the_ui_too_and_says_what_is_open(
    exchanges: SimulatorHandle, pipeline: Callable[..., Pipeline], exchange: str, failure: str
) -> None:
    """The check says what the ledger says: red with the gap and its next try, green afterwards."""
    exchanges.control.reset()
    candles = pipeline(exchanges, start=DAY)
    key = f"{TODAY}|{exchange}"
    fail(exchanges.control, exchange, failure)
    verdict = results(candles.run(key, may_fail=True))["completeness", key]
    assert not verdict.passed
    assert verdict.metadata["missing without proof"].value == 597
    gap = verdict.metadata["open gaps"].records[0].data
    assert (gap["symbol"], gap["cause"]) == (SYMBOL[exchange], "fetch_failed")
    assert gap["next try"] > gap["from"]
    exchanges.control.clear_faults()
    exchanges.control.set_clock(frozen_at=NOW + 2 * MINUTE_MS)
    verdicts = results(candles.run(key))
    assert [name for name, verdict in verdicts.items() if not verdict.passed] == []
