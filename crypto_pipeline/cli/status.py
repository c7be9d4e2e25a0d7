"""``crypto-pipeline status``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from crypto_pipeline.cli.common import say, settings_with
from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.core.timeframes import timeframe_ms

if TYPE_CHECKING:
    from crypto_pipeline.database.overview import BudgetOverview

_FIGURES: Final = (
    "candles", "missing", "seconds_behind", "requests", "waited_seconds", "refused", "bans"
)  # fmt: skip


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def command(as_json: bool) -> None:  # noqa: FBT001 - click's way
    """Show per series: first and last candle, candles stored, missing by cause, seconds behind.

    Missing are the candles that the ledger of gaps (table candle_gaps) has, over all days looked
    at. Nothing can be done about no_trades, exchange_outage, not_listed_yet, delisted and
    beyond_history, which are proven; fetch_failed, rejected and unknown are asked for again.

    And per exchange what its request budget did: requests, seconds waited for a place, answers that
    said "too often", bans, and until when nobody asks it.
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
    from crypto_pipeline.database.overview import budget_overview, series_overview

    exchanges = loaded.pipeline.exchanges
    budgets = budget_overview(conn, {config.budget_name for config in exchanges.values()})
    for exchange, config in exchanges.items():
        budget = _budget(budgets[config.budget_name]) if config.paced else None
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
                "budget": budget,
            }


def _budget(overview: BudgetOverview) -> dict[str, Any]:
    until = overview.blocked_until
    return {
        **asdict(overview),
        "waited_seconds": round(overview.waited_seconds, 1),
        "blocked_until": None if until is None else until.isoformat(timespec="seconds"),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    _print_table([_shown(row) for row in rows])
    budgets = {row["exchange"]: row["budget"] for row in rows if row["budget"] is not None}
    if budgets:
        click.echo()
        _print_table(
            [
                {"exchange": exchange} | {name: _cell(value) for name, value in figures.items()}
                for exchange, figures in budgets.items()
            ]
        )


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in rows[0]:
        justify: Literal["left", "right"] = "right" if name in _FIGURES else "left"
        table.add_column(name.replace("_", " "), justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    # symbols may look like rich's markup: [/X] would end the command
    Console(width=320, markup=False, emoji=False).print(table)


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A row's cells; missing candles in total, and by cause in the last one."""
    causes: dict[str, int] = row["missing"]
    by_cause = ", ".join(f"{count:,} {cause}" for cause, count in causes.items())
    series = {name: value for name, value in row.items() if name != "budget"}
    cells = {**series, "missing": sum(causes.values()), "missing_by_cause": by_cause or None}
    return {name: _cell(value) for name, value in cells.items()}


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int | float) else value.replace("+00:00", "Z")
