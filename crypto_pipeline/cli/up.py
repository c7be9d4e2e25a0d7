"""``crypto-pipeline up``: everything on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import click

from crypto_pipeline.cli.common import checked_config, config_option, say, settings_with
from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.errors import DatabaseError, LocalServiceError
from crypto_pipeline.settings import DATABASE_URL

_ASSETS: Final = ("raw_ohlcv", "validated_ohlcv", "timescale_candles")
_WATCH_SECONDS: Final = 2.0


@click.command("up")
@config_option
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option("--demo", is_flag=True, help="Simulated exchanges: no network, no keys.")
def command(config: Path | None, port: int, demo: bool) -> None:  # noqa: FBT001 - click's way
    """Run everything: database, Dagster UI and daemon, the minute schedule. Ctrl-C stops all of it.

    The UI listens on 127.0.0.1 only. Logs are in $CRYPTO_PIPELINE_HOME/logs.
    """
    with _stopped_by_signals(), ExitStack() as stack:
        _run(stack, config, port=port, demo=demo)


def _run(stack: ExitStack, config: Path | None, *, port: int, demo: bool) -> None:
    from crypto_pipeline.cli.demo import demo_settings, history_partitions
    from crypto_pipeline.cli.environment import project_file, shared_environment
    from crypto_pipeline.cli.keeping import Keeper, alone
    from crypto_pipeline.exchanges.catalogue import check_symbols
    from crypto_pipeline.local.processes import port_is_free

    settings = settings_with(config)
    stack.enter_context(alone(settings.home))
    if not port_is_free(port):
        raise LocalServiceError(
            f"Port {port} of 127.0.0.1 is taken.", hint="stop what uses it, or give another --port."
        )
    if demo:
        say("Starting the exchange simulator …")
        settings = stack.enter_context(demo_settings(settings))
    loaded = checked_config(settings)
    for warning in asyncio.run(check_symbols(loaded)):
        say(f"Warning: {warning}")
    say("Starting the database …")
    environment = stack.enter_context(
        shared_environment(settings, chunk_days=loaded.pipeline.database.chunk_days, log=say)
    )
    say("Starting Dagster …")
    keeper = stack.enter_context(
        Keeper(settings, environment, workspace=project_file("workspace.yaml"), port=port)
    )
    keeper.start()
    say(f"Dagster UI: {keeper.webserver.url}")
    if demo and (partitions := history_partitions(loaded, settings.lake)):
        keeper.webserver.launch_backfill(_ASSETS, partitions)
        say(f"Backfilling {len(partitions)} partitions of history.")
    waiting = set(loaded.pipeline.exchanges)
    while True:
        time.sleep(_WATCH_SECONDS)
        keeper.look()
        if waiting:
            waiting -= _arrived(keeper.environment, waiting)
            if not waiting:
                _say_where(loaded, keeper.webserver.url)


def _arrived(environment: Mapping[str, str], waiting: set[str]) -> set[str]:
    """Say of which exchanges candles are there now."""
    from crypto_pipeline.database.connection import connect
    from crypto_pipeline.database.overview import exchanges_with_candles

    try:
        with connect(environment[DATABASE_URL]) as conn:
            there = set(exchanges_with_candles(conn, sorted(waiting)))
    except DatabaseError as error:
        say(f"Warning: {error}")
        return set()
    for exchange in sorted(there):
        say(f"Candles of {exchange} are there.")
    return there


def _say_where(loaded: LoadedConfig, url: str) -> None:
    program = _program()
    example = next(iter(loaded.pipeline.exchanges))
    symbol = loaded.pipeline.exchanges[example].symbols[0]
    timeframe = loaded.pipeline.exchanges[example].timeframes[0]
    say(
        f"Candles of every exchange are there. Look at them in the UI ({url}/assets), or with\n"
        f"  {program} candles {example} {symbol} {timeframe}\n"
        f"  {program} exec -- psql\n"
        "New ones arrive every minute. Ctrl-C stops everything."
    )


def _program() -> str:
    """How the user can call this command from here."""
    if shutil.which("crypto-pipeline"):
        return "crypto-pipeline"
    path = Path(sys.argv[0])
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class _Stopped(Exception):
    """A signal asked us to stop."""


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end the block in order; further ones wait for that."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        say(f"\n{signal.Signals(number).name}: stopping …")
        raise _Stopped

    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    except _Stopped:
        say("Stopped.")
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
