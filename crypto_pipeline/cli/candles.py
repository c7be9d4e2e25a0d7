"""``crypto-pipeline candles``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from crypto_pipeline.cli.common import UtcTime, known_exchange, say, settings_with

if TYPE_CHECKING:
    import pandas as pd

_DAY: Final = timedelta(days=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)


@click.command("candles")
@click.argument("exchange")
@click.argument("symbol")
@click.argument("timeframe")
@click.option("--start", type=UtcTime(), help="First open time; default: a day before END.")
@click.option("--end", type=UtcTime(), help="Open times before it; default: now.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "parquet"]),
    default="table",
    show_default=True,
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Default: stdout.")
def command(
    exchange: str,
    symbol: str,
    timeframe: str,
    start: datetime | None,
    end: datetime | None,
    form: str,
    output: Path | None,
) -> None:
    r"""Read the candles of a series with START <= open_time < END. Times are UTC.

    \b
    For example:
      crypto-pipeline candles binance BTC/USDT 1m --start 2024-01-01 --format csv --output btc.csv
    """
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise click.UsageError("Parquet is no text: give --output FILE, or redirect stdout.")
    end = end or datetime.now(UTC)
    start = start or max(end, _FIRST + _DAY) - _DAY
    if start >= end:
        raise click.UsageError(f"START {start.isoformat()} is not before END {end.isoformat()}.")
    settings = settings_with(None)
    loaded = settings.load_config()
    series = loaded.pipeline.exchanges[known_exchange(loaded, exchange)].series
    from crypto_pipeline.cli.environment import shared_environment
    from crypto_pipeline.database.candle_reader import read_candles
    from crypto_pipeline.database.connection import connect
    from crypto_pipeline.settings import DATABASE_URL

    with (
        shared_environment(settings, log=say) as environment,
        connect(environment[DATABASE_URL]) as conn,
    ):
        frame = read_candles(
            conn, exchange=exchange, symbol=symbol, timeframe=timeframe, start=start, end=end
        )
    if frame.empty:
        say(f"No candles of {exchange} {symbol} {timeframe} in this time are stored.")
        if (symbol, timeframe) not in series:
            known = ", ".join(f"{one.symbol} {one.timeframe}" for one in series)
            say(f"{loaded.path} does not collect this series; of {exchange} it has {known}.")
    _write(frame.drop(columns=["run_id"]), form, output)


def _write(frame: pd.DataFrame, form: str, output: Path | None) -> None:
    if form == "parquet":
        content = frame.to_parquet(index=False)
    elif form == "csv":
        content = frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%SZ").encode()
    else:
        content = (
            frame.drop(columns=["symbol", "timeframe"]).to_string(index=False) + "\n"
        ).encode()
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        try:
            output.write_bytes(content)
        except OSError as error:
            raise click.FileError(str(output), error.strerror) from error
        say(f"{len(frame):,} candles written to {output}.")
