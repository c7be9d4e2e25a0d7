"""The real deployment over real minutes, with a fault every minute; then nothing may be missing.

``python -m crypto_pipeline_tests.benchmarks.soak --minutes 60 --seed 1`` (`make faults`): a whole
`crypto-pipeline up` with three simulated exchanges, the minute schedule, the healing sensor and
backfills. Each minute one fault of a seeded list: a process killed or stopped, the database killed,
the lake away, an exchange down or talking nonsense. A supervisor starts `up` again where `up` itself
was killed, as systemd would; nothing else is ever done by hand. When the faults are over, every
partition must be complete and equal to what the exchanges truly had, within ``--settle`` minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from crypto_pipeline.core.timeframes import MINUTE_MS, day_start_ms, to_ms
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.benchmarks.chaos import FAULTS, Chaos
from crypto_pipeline_tests.benchmarks.samples import Samples
from crypto_pipeline_tests.benchmarks.supervised import Supervised
from crypto_pipeline_tests.database.stored import HOURS_OFF

BASES = ["BTC", "ETH", "SOL", "XRP"]
QUOTES = {"binance": "USDT", "kraken": "USD", "coinbaseexchange": "USD"}
SYMBOLS = {key: [f"{base}/{quote}" for base in BASES] for key, quote in QUOTES.items()}
HISTORY_DAYS = 3
ASSETS = ["raw_ohlcv", "validated_ohlcv", "timescale_candles"]
KEY = ["exchange", "symbol", "open_time"]
VALUES = ["open", "high", "low", "close", "volume"]

OPEN = "SELECT exchange, gap_start, cause FROM candle_gaps WHERE next_retry IS NOT NULL"
NONE_OF = ("lost", "invented", "different", "hours off")
PARTITIONS = "SELECT count(*) FROM candle_partitions"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if the store ends complete and true, and nothing grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--settle", type=int, default=15, help="minutes to heal afterwards")
    parser.add_argument("--only", help="faults whose names begin with one of these, by commas")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder, simulated() as simulator:
        home = Path(folder) / "home"
        home.mkdir()
        first = datetime.now(UTC).date() - timedelta(days=HISTORY_DAYS)
        config = home / "pipeline.yaml"
        config.write_text(_pipeline(simulator, first))
        with Supervised(home, config) as deployment:
            samples = Samples(deployment)
            chaos = Chaos(deployment, simulator, chance)
            days = [first + timedelta(days=n) for n in range(HISTORY_DAYS)]
            keys = [partition_key(key, day) for key in SYMBOLS for day in days]
            deployment.webserver.launch_backfill(ASSETS, keys)
            names = [n for n in FAULTS if n.startswith(tuple((options.only or "").split(",")))]
            done = _torment(chaos, samples, names, options.minutes, chance)
            chaos.over()
            healed = _settle(deployment, samples, simulator, day_start_ms(first), options.settle)
            figures = {
                "minutes": options.minutes,
                "seed": options.seed,
                "faults": done,
                **healed,
                "left behind": deployment.left_behind(),
                "up started": deployment.starts,
                **samples.figures(),
            }
    sys.stdout.write(json.dumps(figures, indent=2, default=str) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=str))
    bad = [figures[name] for name in (*NONE_OF, "open gaps", "left behind")]
    return 1 if any(bad) or figures["grows"] else 0


@contextmanager
def simulated() -> Iterator[SimulatorHandle]:
    """The exchanges, each on a port of its own, so that it can go away."""
    exchanges = {
        key: {"symbols": symbols, "port": 0, "quiet_rate": 0.05} for key, symbols in SYMBOLS.items()
    }
    config = SimulatorConfig.parse({"exchanges": exchanges}, origin="the soak")
    with running_simulator(config) as simulator:
        yield simulator


def _pipeline(simulator: SimulatorHandle, first: date) -> str:
    return yaml.safe_dump(
        {
            "exchanges": {
                key: {
                    "symbols": symbols,
                    "start": first,
                    "ccxt": simulator.ccxt_config(key),
                    "retry": {"attempts": 2, "first_wait_seconds": 0.2},
                    "timeout_seconds": 10,
                }
                for key, symbols in SYMBOLS.items()
            }
        }
    )


def _torment(
    chaos: Chaos, samples: Samples, names: Sequence[str], minutes: int, chance: random.Random
) -> dict[str, int]:
    """One fault a minute, each as often as the others, at any second."""
    done: dict[str, int] = {}
    bag: list[str] = []
    began = time.monotonic()
    for minute in range(minutes):
        at = began + minute * 60 + chance.uniform(0, 50)
        while time.monotonic() < at:
            samples.take()
            time.sleep(1)
        if not bag:
            bag = list(names)
            chance.shuffle(bag)
        name = bag.pop()
        done[name] = done.get(name, 0) + 1
        _say(f"minute {minute}: {name}: {chaos.act(name)}")
    while time.monotonic() < began + minutes * 60:
        samples.take()
        time.sleep(1)
    return done


def _settle(
    deployment: Supervised,
    samples: Samples,
    simulator: SimulatorHandle,
    first: int,
    minutes: int,
) -> dict[str, Any]:
    """Wait until the store is complete; compare it with the truth, minute by minute."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    while True:
        samples.take()
        try:
            found = _compare(deployment, simulator, first)
        except CryptoPipelineError as error:
            found = {"error": str(error)}
        if not found.get("error") and not any(
            found[name] for name in (*NONE_OF, "open gaps", "unseen")
        ):
            break
        if time.monotonic() > began + minutes * 60:
            break
        _say(f"healing: {found}")
        time.sleep(10)
    return {**found, "healed after seconds": round(time.monotonic() - began)}


def _compare(deployment: Supervised, simulator: SimulatorHandle, first: int) -> dict[str, Any]:
    until = to_ms(datetime.now(UTC)) // MINUTE_MS * MINUTE_MS - 4 * MINUTE_MS
    stored = pd.DataFrame(
        deployment.rows(
            "SELECT exchange, symbol, (extract(epoch FROM open_time) * 1000)::bigint, open, high,"
            " low, close, volume FROM candles"
        ),
        columns=[*KEY, *VALUES],
    )
    open_gaps = deployment.rows(OPEN)
    days = (until - first) // 86_400_000 + 1
    unseen = len(SYMBOLS) * days - deployment.rows(PARTITIONS)[0][0]
    truth = pd.concat(
        simulator.truth.candles(key, symbol, "1m", first, until).assign(exchange=key, symbol=symbol)
        for key, symbols in SYMBOLS.items()
        for symbol in symbols
    )
    both = stored[stored["open_time"] < until].merge(
        truth, how="outer", on=KEY, suffixes=("", "_true"), indicator=True
    )
    lost = both[both["_merge"] == "right_only"]
    # Kraken's flat candles of quiet minutes are no trades: built from trades there is no row.
    lost = lost[(lost["exchange"] != "kraken") | (lost["volume_true"] > 0)]
    same = both[both["_merge"] == "both"]
    off = pd.concat(
        (same[name] - same[f"{name}_true"]).abs() > 1e-9 * same[f"{name}_true"].abs()
        for name in VALUES
    )
    return {
        "candles": len(stored),
        "lost": len(lost),
        "invented": int((both["_merge"] == "left_only").sum()),
        "different": int(off.sum()),
        "hours off": deployment.rows(HOURS_OFF)[0][0],
        "open gaps": len(open_gaps),
        "unseen": int(unseen),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
