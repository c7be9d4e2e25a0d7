"""``crypto-pipeline backfill``: the UI's range runs, here, one after the other."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, date, datetime

import click

from crypto_pipeline.cli.common import UtcDay, checked_config, known_exchange, say, settings_with
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.settings import FRUGAL


@click.command("backfill")
@click.argument("exchange")
@click.argument("start", type=UtcDay())
@click.argument("end", type=UtcDay())
def command(exchange: str, start: date, end: date) -> None:
    """Collect the UTC days START to END (included; `today` is allowed) of EXCHANGE.

    The same range runs as a backfill launched in the UI, recorded on the same Dagster instance, run
    here one after the other. Exit status 1 if a partition is not complete.
    """
    from crypto_pipeline.local.children import prepared

    settings = settings_with(None)
    module = "crypto_pipeline.orchestration.backfill_process"
    argv = [sys.executable, "-m", module, exchange, start.isoformat(), end.isoformat()]
    with prepared(argv, {**FRUGAL, **settings.environment}) as begin:
        loaded = settings.load_config()
        first = loaded.pipeline.exchanges[known_exchange(loaded, exchange)].start
        if end > (today := datetime.now(UTC).date()):
            raise click.UsageError(f"END {end} has not come yet: today is {today} (UTC).")
        if end < start:
            raise click.UsageError(f"END {end} is before START {start}.")
        if start < first:
            raise ConfigError(
                f"{loaded.path}: exchanges.{exchange}.start is {first}, after {start}.",
                hint="set an earlier start to collect earlier days.",
            )
        checked_config(settings)
        from crypto_pipeline.cli.environment import shared_environment
        from crypto_pipeline.exchanges.catalogue import check_symbols

        for warning in asyncio.run(check_symbols(loaded, exchanges=[exchange])):
            say(f"Warning: {warning}")
        chunk_days = loaded.pipeline.database.chunk_days
        with shared_environment(settings, chunk_days=chunk_days, log=say) as environment:
            status = begin(environment)
    sys.exit(status)
