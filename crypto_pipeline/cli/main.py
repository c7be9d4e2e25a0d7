"""The ``crypto-pipeline`` command. Each subcommand is a module that is imported when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import Final

import click

from crypto_pipeline.corridor.garbage import collect_rarely

_COMMANDS: Final = {
    "up": (
        "crypto_pipeline.cli.up",
        "Run everything: database, Dagster UI, daemon, minute schedule.",
    ),
    "exec": ("crypto_pipeline.cli.exec", "Run a command with the database and Dagster set up."),
    "backfill": ("crypto_pipeline.cli.backfill", "Collect a range of UTC days of an exchange."),
    "simulate": ("crypto_pipeline.cli.simulate", "Run the exchange simulator alone."),
    "candles": ("crypto_pipeline.cli.candles", "Read candles."),
    "status": ("crypto_pipeline.cli.status", "Show what is stored of each series, and how fresh."),
    "doctor": ("crypto_pipeline.cli.doctor", "Check configuration, database, lake and exchanges."),
}

#: Those that run on and on.
_LASTING: Final = {"up", "exec", "simulate"}


class _Lazy(click.Group):
    """``--help`` must be instant: Dagster and ccxt take seconds to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name not in _LASTING:
            collect_rarely()  # a third of the time of importing modules is the collector's
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crypto-pipeline")
def cli() -> None:
    """A candle store you can trust: OHLCV from many exchanges, live and backfilled."""


def main() -> None:
    """Entry point: our own errors are one message on stderr and exit status 2, without a trace.

    SIGTERM and SIGHUP (a closed terminal) end a command in order, as Ctrl-C does: what it started
    is stopped.
    """
    from crypto_pipeline.errors import CryptoPipelineError

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _end_in_order)
    try:
        cli()
    except CryptoPipelineError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _end_in_order(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # once: a second one must not interrupt the cleaning up
    if number == signal.SIGHUP and os.getpgrp() == os.getpid():
        os.killpg(0, number)  # a terminal tells the leader only, who waits for the others
    sys.exit(128 + number)
