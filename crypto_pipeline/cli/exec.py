"""``crypto-pipeline exec -- CMD …``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from crypto_pipeline.cli.common import say
from crypto_pipeline.settings import DATABASE_URL, read_settings

#: PostgreSQL's own programs, which know nothing of our variables.
_CLIENTS: Final = ("psql", "pg_dump", "pg_restore", "pg_isready", "pgbench", "vacuumdb")


@click.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("cmd", nargs=-1, required=True, type=click.UNPROCESSED)
def command(cmd: tuple[str, ...]) -> None:
    """Run CMD with the database and Dagster set up, and return its exit status.

    Starts the local database if none is configured and none runs, migrates it, sets the
    environment (README.md lists it), runs CMD, and stops what it started. PostgreSQL's own programs
    (psql, pg_dump …) find the database by themselves. For example:

    \b
      crypto-pipeline exec -- dagster definitions validate
      crypto-pipeline exec -- psql
    """  # noqa: D301 - click reads the backspace
    from crypto_pipeline.cli.environment import shared_environment
    from crypto_pipeline.database.connection import postgres_variables
    from crypto_pipeline.local.children import run_in_foreground

    with shared_environment(read_settings(), log=say) as shared:
        environment = dict(shared)
        if Path(cmd[0]).name in _CLIENTS:
            environment |= postgres_variables(environment[DATABASE_URL])
        status = run_in_foreground(cmd, environment)
    sys.exit(status)
