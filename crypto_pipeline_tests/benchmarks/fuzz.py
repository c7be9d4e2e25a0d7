"""Hostile answers by the million, through the whole corridor into a real lake and TimescaleDB.

``python -m crypto_pipeline_tests.benchmarks.fuzz --answers 1000000 --seed 1``: says what came of them,
and fails at the first that broke a promise, with what brings it back. The promises are those of
:mod:`crypto_pipeline_tests.fuzzing`: only typed errors, no row that vanishes, values bit by bit,
nothing stored twice, and what validation lets through the table takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.local import LocalPostgres
from crypto_pipeline_tests.fuzzing.campaign import batches
from crypto_pipeline_tests.fuzzing.checking import Broken, Tally

_SAID_EVERY = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if every promise held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    total, began, said = Tally(), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, LocalPostgres(Path(folder) / "home") as server:
        url = server.url("postgres")
        upgrade(url)
        with connect(url) as conn:
            conn.execute("SET synchronous_commit = off")
            try:
                for tally in batches(
                    options.answers, options.seed, conn=conn, lake=Path(folder) / "lake"
                ):
                    total.add(tally)
                    if total.answers - said >= _SAID_EVERY:
                        said = total.answers
                        _say(total, time.monotonic() - began)
            except Broken as error:
                sys.stdout.write(f"NOT  after {total.answers:,} answers: {error}\n")
                return 1
    _say(total, time.monotonic() - began)
    return 0


def _say(total: Tally, seconds: float) -> None:
    errors = ", ".join(f"{name} {count:,}" for name, count in total.errors.most_common())
    rules = ", ".join(f"{name} {count:,}" for name, count in total.rules.most_common())
    sys.stdout.write(
        f"held  {total.answers:,} answers with {total.rows:,} rows in {seconds:,.0f} s:"
        f" {total.stored:,} candles stored, {total.forming:,} forming, {total.refused:,} rows refused"
        f" ({rules}), {total.unasked:,} nobody asked for; refused as a whole: {errors}\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
