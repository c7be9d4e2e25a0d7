"""``crypto-pipeline up``: everything on this machine, in the foreground."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
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
_READY_SECONDS: Final = 120.0
_WATCH_SECONDS: Final = 2.0
#: Dagster tells every step of every run: about 50 MB a day for three exchanges.
_LOG_BYTES: Final = 100_000_000


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
    from crypto_pipeline.cli.webserver import Webserver
    from crypto_pipeline.exchanges.catalogue import check_symbols
    from crypto_pipeline.local.children import running_group
    from crypto_pipeline.local.processes import port_is_free

    if not port_is_free(port):
        raise LocalServiceError(
            f"Port {port} of 127.0.0.1 is taken.", hint="stop what uses it, or give another --port."
        )
    settings = settings_with(config)
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
    log = settings.home / "logs" / "dagster.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say("Starting Dagster …")
    dagster = stack.enter_context(
        running_group(
            ["dagster", "dev", "--workspace", str(project_file("workspace.yaml")),
             "--host", "127.0.0.1", "--port", str(port)],
            environment,
            output=log,
        )
    )  # fmt: skip
    webserver = Webserver(f"http://127.0.0.1:{port}")
    try:
        webserver.wait_ready(timeout=_READY_SECONDS, alive=lambda: dagster.poll() is None)
    except LocalServiceError as error:
        raise LocalServiceError(error.message, hint=f"see {log}.") from error
    say(f"Dagster UI: {webserver.url}")
    if demo and (partitions := history_partitions(loaded, settings.lake)):
        webserver.launch_backfill(_ASSETS, partitions)
        say(f"Backfilling {len(partitions)} partitions of history.")
    _watch(loaded, environment, dagster, webserver.url, log)


def _program() -> str:
    """How the user can call this command from here."""
    if shutil.which("crypto-pipeline"):
        return "crypto-pipeline"
    path = Path(sys.argv[0])
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _watch(
    loaded: LoadedConfig,
    environment: Mapping[str, str],
    dagster: subprocess.Popen[bytes],
    url: str,
    log: Path,
) -> None:
    """Say when candles of every exchange are there; then stay until Dagster ends or a signal."""
    from crypto_pipeline.database.connection import connect
    from crypto_pipeline.database.overview import exchanges_with_candles
    from crypto_pipeline.local.children import shorten_log

    waiting = set(loaded.pipeline.exchanges)
    while dagster.poll() is None:
        time.sleep(_WATCH_SECONDS)
        shorten_log(log, limit=_LOG_BYTES)
        if not waiting:
            continue
        try:
            with connect(environment[DATABASE_URL]) as conn:
                there = exchanges_with_candles(conn, sorted(waiting))
        except DatabaseError as error:
            say(f"Warning: {error}")
            continue
        for exchange in sorted(there):
            say(f"Candles of {exchange} are there.")
        waiting -= there
        if not waiting:
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
    raise LocalServiceError(
        f"Dagster ended by itself (status {dagster.returncode}).", hint=f"see {log}."
    )


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
