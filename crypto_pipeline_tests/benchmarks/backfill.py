"""A backfill as a user pays for it: whole processes, side by side with what they would write instead.

``python -m crypto_pipeline_tests.benchmarks.backfill``: candles of a simulated binance into a
TimescaleDB of their own, by one Dagster range run with all assets and checks (``ours``: as a deployment
launches it; ``command``: by `crypto-pipeline backfill`, from nothing), by the
practical-limit script and by the naive one (:mod:`.peers`), and by freqtrade where it is installed, each
several times, in turn. Wall seconds include the start of the process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from crypto_pipeline_tests.benchmarks.machine import Machine, Spent, machine

#: A realistic exchange: what a call takes of its limit, the share of it that may be used by default,
#: and seconds until an answer begins.
COST_MS, SHARE, LATENCY = 20, 0.9, 0.06
#: What ccxt says a call for binance's markets takes of it; a run in a new database makes one.
MARKETS_MS = 200
GROWTH = (1, 4, 16)


def median(spent: Sequence[Spent]) -> dict[str, float]:
    """Of each figure."""
    return {
        name: round(statistics.median(getattr(one, name) for one in spent), 2)
        for name in ("wall", "cpu", "database_cpu", "peak_mb", "requests")
    }


def paced(running: Machine, days: int, rounds: int) -> dict[str, float]:
    """With a request budget and a network: how much of the time is what the budget alone dictates."""
    running.simulator.control.set_latency("binance", LATENCY)
    spent = [
        running.ours(days, warm=True, ccxt={"enableRateLimit": True}, habits={"cost_ms": COST_MS})[
            0
        ]
        for _ in range(rounds)
    ]
    running.simulator.control.set_latency("binance", 0)
    dictated = (running.fewest(days) * COST_MS + MARKETS_MS) / SHARE / 1_000
    figures = {**median(spent), "dictated": round(dictated, 2)}
    return {**figures, "of the dictated time": round(dictated / figures["wall"], 3)}


def growth(running: Machine, days: int, rounds: int) -> dict[str, dict[str, float]]:
    """One range run of 1, 4 and 16 times as many days: time a candle, and memory."""
    found = {}
    for times in GROWTH:
        spent = [running.ours(times * days, warm=True)[0] for _ in range(rounds)]
        figures = median(spent)
        candles = len(running.symbols) * times * days * 1_440
        found[f"{times}x"] = {**figures, "us a candle": round(figures["wall"] / candles * 1e6, 2)}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if ours is not slower than the practical limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=20)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--naive", action="store_true", help="also the naive script, once")
    parser.add_argument(
        "--freqtrade", default=shutil.which("freqtrade"), help="freqtrade's program, to run it, too"
    )
    parser.add_argument("--paced", action="store_true", help="with a request budget, instead")
    parser.add_argument("--growth", action="store_true", help="1, 4, 16 times the days, instead")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    spent: dict[str, list[Spent]] = {
        name: [] for name in ("ours", "command", "practical", "freqtrade", "naive")
    }
    with machine(options.symbols) as running:
        running.ours(1)  # Dagster makes its tables, the simulator its candles
        if options.paced or options.growth:
            measured = paced if options.paced else growth
            told = json.dumps(measured(running, options.days, options.rounds), indent=2)
            sys.stdout.write(told + "\n")
            if options.json:
                options.json.write_text(told)
            return 0
        for number in range(options.rounds):
            spent["practical"].append(running.peer("practical", options.days))
            spent["ours"].append(running.ours(options.days, warm=True)[0])
            spent["command"].append(running.ours(options.days)[0])
            if options.freqtrade:
                spent["freqtrade"].append(running.freqtrade(options.freqtrade, options.days))
            if options.naive and not number:
                spent["naive"].append(running.peer("naive", options.days))
            sys.stdout.write(
                f"round {number + 1}: "
                + ", ".join(f"{name} {each[-1].wall:.2f} s" for name, each in spent.items() if each)
                + "\n"
            )
            sys.stdout.flush()
        fewest = running.fewest(options.days)
        ceiling = statistics.median(running.ceiling(options.days) for _ in range(3))
    candles = options.symbols * options.days * 1_440
    figures = {name: median(each) for name, each in spent.items() if each}
    for name, each in figures.items():
        sys.stdout.write(
            f"{name:10} {each['wall']:6.2f} s wall, {each['cpu']:6.2f} s CPU, {each['database_cpu']:5.2f} s"
            f" in the database, {each['peak_mb']:4.0f} MB, {candles / each['wall']:9,.0f} candles/s,"
            f" {each['requests']:.0f} requests (at least {fewest})\n"
        )
    sys.stdout.write(f"the simulator alone serves {ceiling:,.0f} candles/s\n")
    ratio = figures["ours"]["wall"] / figures["practical"]["wall"]
    sys.stdout.write(f"ours takes {ratio:.2f} of the practical limit's time")
    if options.freqtrade:
        sys.stdout.write(
            f", {figures['ours']['wall'] / figures['freqtrade']['wall']:.2f} of freqtrade's"
        )
    sys.stdout.write("\n")
    if options.json:
        options.json.write_text(
            json.dumps({**figures, "simulator": ceiling, "ratio": ratio}, indent=2)
        )
    return 0 if ratio <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
