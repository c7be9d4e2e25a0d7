"""``crypto-pipeline doctor``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import click

from crypto_pipeline.cli.common import checked_config, config_option, settings_with
from crypto_pipeline.errors import CryptoPipelineError, LakeError
from crypto_pipeline.plaintext import shown
from crypto_pipeline.redaction import without_user
from crypto_pipeline.settings import DAGSTER_HOME, DAGSTER_URL, DATABASE_URL, Settings


@click.command("doctor")
@config_option
def command(config: Path | None) -> None:
    """Check configuration, database, lake, exchanges and Dagster home; say what to do.

    Exit status 1 if anything is wrong.
    """
    settings = settings_with(config)
    healthy = True
    with ExitStack() as stack:
        for name, check in _checks(settings, stack):
            try:
                click.echo(f"ok    {name}: {check()}")
            except CryptoPipelineError as error:
                healthy = False
                click.echo(f"WRONG {name}: {error}")
            except Exception as error:  # noqa: BLE001 - the other checks are wanted all the more
                healthy = False
                reason = without_user(shown(str(error)))
                click.echo(f"WRONG {name}: {type(error).__name__}: {reason}")
    sys.exit(0 if healthy else 1)


def _checks(settings: Settings, stack: ExitStack) -> Iterator[tuple[str, Callable[[], str]]]:
    environment: dict[str, str] = {}

    def database() -> str:
        from crypto_pipeline.cli.environment import shared_environment
        from crypto_pipeline.database.connection import connect, storage

        environment.update(
            stack.enter_context(
                shared_environment(settings, log=lambda text: click.echo(f"      {text}"))
            )
        )
        with connect(environment[DATABASE_URL]) as conn:
            found = storage(conn)
        kind = "a hypertable" if found.hypertable else "a plain table"
        version = f"{found.server_version // 10_000}.{found.server_version % 10_000}"
        return f"PostgreSQL {version}, TimescaleDB edition {found.edition}, candles is {kind}"

    def dagster() -> str:
        from crypto_pipeline.database.connection import connect

        if not environment:
            raise CryptoPipelineError(
                "not checked: there is no database.", hint="see to the database first."
            )
        with connect(environment[DAGSTER_URL]):
            pass
        return f"home {environment[DAGSTER_HOME]}, its storage can be reached"

    yield "configuration", lambda: _configuration(settings)
    yield "lake", lambda: _lake(settings)
    yield "database", database
    yield "Dagster", dagster
    yield "exchanges", lambda: _exchanges(settings)


def _configuration(settings: Settings) -> str:
    loaded = checked_config(settings)
    series = sum(len(exchange.series) for exchange in loaded.pipeline.exchanges.values())
    return f"{loaded.path}: {len(loaded.pipeline.exchanges)} exchanges, {series} series"


def _lake(settings: Settings) -> str:
    from crypto_pipeline.lake.storage import LakeStorage

    storage = LakeStorage(settings.lake)
    name = f".doctor-{uuid4().hex}"
    storage.write(name, b"ok")
    try:
        if storage.read(name) != b"ok":
            raise LakeError(
                f"{without_user(settings.lake)} does not give back what was written.",
                hint="another program writes there: give the lake a place of its own.",
            )
    finally:
        storage.remove(name)
    return f"{without_user(settings.lake)} can be written and read"


def _exchanges(settings: Settings) -> str:
    from crypto_pipeline.exchanges.catalogue import check_symbols

    loaded = settings.load_config()
    unreachable = asyncio.run(check_symbols(loaded))
    if unreachable:
        raise CryptoPipelineError(
            " ".join(unreachable),
            hint="see to the network, a proxy, or the exchange's status page.",
        )
    return f"{', '.join(loaded.pipeline.exchanges)} list every configured symbol"
