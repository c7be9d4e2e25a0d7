"""``crypto-pipeline exec -- CMD …``."""

from __future__ import annotations

import sys

import click

from crypto_pipeline.cli.common import say
from crypto_pipeline.settings import read_settings


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
def command(cmd: tuple[str, ...]) -> None:
    """Run CMD with the database and Dagster set up, and return its exit status.

    Starts the local database if none is configured and none runs, migrates it, sets the
    environment (README.md lists it), runs CMD, and stops what it started. For example:

    \b
      crypto-pipeline exec -- dagster definitions validate
      crypto-pipeline exec -- sh -c 'psql "$CRYPTO_PIPELINE_DATABASE_URL"'
    """  # noqa: D301 - click reads the backspace
    from crypto_pipeline.cli.environment import shared_environment
    from crypto_pipeline.local.children import run_in_foreground

    with shared_environment(read_settings(), log=say) as environment:
        status = run_in_foreground(cmd, environment)
    sys.exit(status)
