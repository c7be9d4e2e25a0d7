"""``crypto-pipeline candles``."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

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
@click.option("--fill", is_flag=True, help="With flat candles where it is proven that none traded.")
def command(
    exchange: str,
    symbol: str,
    timeframe: str,
    start: datetime | None,
    end: datetime | None,
    form: str,
    output: Path | None,
    fill: bool,  # noqa: FBT001 - click's way
) -> None:
    """Read the candles of a series with START <= open_time < END. Times are UTC.

    --fill adds a flat candle for each one that is missing because nothing traded (no_trades) or
    because the whole exchange was silent (exchange_outage): its prices are the close of the last
    stored candle before it, its volume is 0, and the column `filled` has the cause. Stored candles
    have nothing there. Never filled is what may have traded or was not to be had: causes unknown,
    fetch_failed, rejected, not_listed_yet, delisted and beyond_history, and whatever the ledger of
    gaps does not explain; nor what comes before the first stored candle.

    \b
    For example:
      crypto-pipeline candles binance BTC/USDT 1m --start 2024-01-01 --format csv --output btc.csv
    """  # noqa: D301 - click's own mark for lines to leave as they are
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
            conn,
            exchange=exchange,
            symbol=symbol,
            timeframe=timeframe,
            start=start,
            end=end,
            fill=fill,
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
        content = _with_exact_times(frame).to_csv(index=False).encode()
    else:
        table = frame.drop(columns=["symbol", "timeframe"])
        text = "" if table.empty else table.to_string(index=False, na_rep="") + "\n"
        content = text.encode()
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        try:
            output.write_bytes(content)
        except OSError as error:
            raise click.FileError(str(output), error.strerror) from error
        flat = int(frame["filled"].count()) if "filled" in frame else 0
        told = f", {flat:,} of them filled," if flat else ""
        say(f"{len(frame):,} candles{told} written to {output}.")


def _with_exact_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Times as ISO 8601: candles open on whole seconds, answers come at a millisecond."""
    import numpy as np

    texts = {}
    units: dict[str, Literal["s", "ms"]] = {"open_time": "s", "fetched_at": "ms"}
    for name, unit in units.items():
        times = frame[name].dt.tz_convert(None).to_numpy("datetime64[ms]")
        words = np.char.add(np.datetime_as_string(times, unit=unit), "Z")
        texts[name] = np.where(np.isnat(times), "", words)
    return frame.assign(**texts)
