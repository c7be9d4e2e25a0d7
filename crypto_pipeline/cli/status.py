"""``crypto-pipeline status``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from crypto_pipeline.cli.common import say, settings_with
from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.core.timeframes import timeframe_ms


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:  # noqa: FBT001 - click's way
    """Show per series: first and last candle, candles stored, missing by cause, seconds behind.

    Missing are the candles that the ledger of gaps (table candle_gaps) has, over all days looked
    at. Nothing can be done about no_trades, exchange_outage, not_listed_yet, delisted and
    beyond_history, which are proven; fetch_failed, rejected and unknown are asked for again.
    """
    settings = settings_with(None)
    loaded = settings.load_config()
    from crypto_pipeline.cli.environment import shared_environment
    from crypto_pipeline.database.connection import connect
    from crypto_pipeline.settings import DATABASE_URL

    with (
        shared_environment(settings, log=say) as environment,
        connect(environment[DATABASE_URL]) as conn,
    ):
        rows = list(_rows(conn, loaded, datetime.now(UTC)))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _print(rows)


def _rows(conn: Any, loaded: LoadedConfig, now: datetime) -> Iterator[dict[str, Any]]:
    from crypto_pipeline.core.coverage import Series
    from crypto_pipeline.database.gap_reader import missing_by_cause
    from crypto_pipeline.database.overview import series_overview

    for exchange, config in loaded.pipeline.exchanges.items():
        missing = missing_by_cause(conn, exchange=exchange)
        for series in series_overview(conn, exchange=exchange, series=config.series):
            length = timedelta(milliseconds=timeframe_ms(series.timeframe))
            yield {
                "exchange": exchange,
                "symbol": series.symbol,
                "timeframe": series.timeframe,
                "first": None if series.first is None else series.first.isoformat(),
                "last": None if series.last is None else series.last.isoformat(),
                "candles": series.candles,
                "missing": missing.get(Series(series.symbol, series.timeframe), {}),
                "seconds_behind": None
                if series.last is None
                else round((now - series.last - length).total_seconds(), 1),
            }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    shown = [_shown(row) for row in rows]
    for name in shown[0]:
        numeric = name in ("candles", "missing", "seconds_behind")
        table.add_column(
            name.replace("_", " "), justify="right" if numeric else "left", no_wrap=True
        )
    for row in shown:
        table.add_row(*row.values())
    Console(width=320).print(table)


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A row's cells; missing candles in total, and by cause in the last one."""
    causes: dict[str, int] = row["missing"]
    by_cause = ", ".join(f"{count:,} {cause}" for cause, count in causes.items())
    cells = {**row, "missing": sum(causes.values()), "missing_by_cause": by_cause or None}
    return {name: _cell(value) for name, value in cells.items()}


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int | float) else value.replace("+00:00", "Z")
