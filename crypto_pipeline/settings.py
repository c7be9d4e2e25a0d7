"""The one place that reads the environment, and writes it.

The variables, their meaning and defaults are the public interface; README.md lists them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crypto_pipeline.config.load import LoadedConfig, load_config
from crypto_pipeline.errors import ConfigError

CONFIG: Final = "CRYPTO_PIPELINE_CONFIG"
HOME: Final = "CRYPTO_PIPELINE_HOME"
DATABASE_URL: Final = "CRYPTO_PIPELINE_DATABASE_URL"
LAKE: Final = "CRYPTO_PIPELINE_LAKE"
DAGSTER_URL: Final = "DAGSTER_POSTGRES_URL"
DAGSTER_HOME: Final = "DAGSTER_HOME"
#: Dagster's own: how many materializations of a range run it stores with one statement.
EVENT_BATCH: Final = "DAGSTER_EVENT_BATCH_SIZE"
#: Where ``up --demo`` and tests run the exchange simulator; the demo's pipeline file reads it.
SIMULATOR_URL: Final = "CRYPTO_PIPELINE_SIMULATOR_URL"
#: On every process of an `up`: its home.
UP: Final = "CRYPTO_PIPELINE_UP"

#: Read when a process starts. Runs are short and have few threads: memory given back counts for more than
#: the last per cent of speed. Together they take 45 MB off a minute run of 50 symbols.
FRUGAL: Final = {"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The environment, read once. ``database_url`` is None where the local server is meant."""

    config_path: Path
    home: Path
    lake: str
    database_url: str | None
    dagster_url: str | None
    cache: Path
    environment: Mapping[str, str]

    def load_config(self) -> LoadedConfig:
        """The pipeline file, with ``${NAME}`` filled in.

        Raises:
            ConfigError: naming the file, the key, what was found and what is allowed.
        """
        return load_config(self.config_path, self.environment)

    def require_database_url(self) -> str:
        """The database to use.

        Raises:
            ConfigError: none is configured in this process's environment.
        """
        if self.database_url is None:
            raise ConfigError(
                f"{DATABASE_URL} is not set, so there is no database to write to.",
                hint="run the command under `crypto-pipeline exec -- …`, which starts the local"
                " one, or set the variable to a postgresql:// URL.",
            )
        return self.database_url


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from the given environment, by default this process's."""
    env = dict(os.environ if environment is None else environment)  # noqa: TID251 - the one place
    home = Path(env.get(HOME) or ".crypto_pipeline").expanduser().absolute()
    cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "crypto_pipeline"
    return Settings(
        config_path=Path(env.get(CONFIG) or "pipeline.yaml").expanduser().absolute(),
        home=home,
        lake=env.get(LAKE) or str(home / "lake"),
        database_url=env.get(DATABASE_URL) or None,
        dagster_url=env.get(DAGSTER_URL) or None,
        cache=cache,
        environment=env,
    )


def add_to_environment(values: Mapping[str, str]) -> None:
    """For the rest of this process and its children: what its parent knew only after starting it."""
    os.environ.update({name: value for name, value in values.items() if name})  # noqa: TID251 - the one place
