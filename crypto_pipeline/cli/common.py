"""What several commands share: saying things, settings with ``--config``, time arguments."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import click

from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.plaintext import shown
from crypto_pipeline.settings import Settings, read_settings


def say(text: str) -> None:
    """A sentence for the user, on stderr: stdout is for data."""
    with suppress(OSError):  # the terminal may be closed: what is under way must end in order
        click.echo(shown(text), err=True)


def settings_with(config: Path | None) -> Settings:
    """This process's settings, with another pipeline file if one is given."""
    settings = read_settings()
    return settings if config is None else replace(settings, config_path=config.absolute())


def checked_config(settings: Settings) -> LoadedConfig:
    """The pipeline file, checked against ccxt's exchanges and timeframes.

    Raises:
        ConfigError: one line a mistake.
    """
    loaded = settings.load_config()  # before ccxt is imported: a mistake is told at once
    from crypto_pipeline.exchanges.catalogue import check_exchanges

    check_exchanges(loaded)
    return loaded


def known_exchange(loaded: LoadedConfig, exchange: str) -> str:
    """The exchange's key.

    Raises:
        ConfigError: the pipeline file has no such exchange.
    """
    if exchange not in loaded.pipeline.exchanges:
        raise ConfigError(
            f"{loaded.path} has no exchange {exchange!r}.",
            hint=f"choose from {', '.join(loaded.pipeline.exchanges)}.",
        )
    return exchange


class UtcDay(click.ParamType[date]):
    """``2024-01-31``, or ``today``."""

    name = "day"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> date:
        """The day, or click's usage error."""
        if isinstance(value, date):
            return value
        if value == "today":
            return datetime.now(UTC).date()
        try:
            return date.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a UTC day like 2024-01-31", param, ctx)


class UtcTime(click.ParamType[datetime]):
    """``2024-01-31`` or ``2024-01-31T12:00``; UTC unless it names another zone."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """The aware time, or click's usage error."""
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time like 2024-01-31T12:00", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pipeline file; default: $CRYPTO_PIPELINE_CONFIG, else pipeline.yaml.",
)
