"""The environment every process of a deployment shares: database, Dagster's storage and home.

Starts the embedded PostgreSQL where the settings name no server, brings the tables to this
version, puts the project's ``dagster.yaml`` where Dagster looks for it, and says all of it in
environment variables, so that any standard Dagster command works under it.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from crypto_pipeline.database.connection import check_url
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local.cluster import installation
from crypto_pipeline.local.postgres import DAGSTER_DATABASE, DATABASE, LocalPostgres
from crypto_pipeline.settings import (
    CONFIG,
    DAGSTER_HOME,
    DAGSTER_URL,
    DATABASE_URL,
    EVENT_BATCH,
    FRUGAL,
    HOME,
    LAKE,
    Settings,
)

_PROJECT: Final = Path(__file__).parents[2]


@contextmanager
def shared_environment(
    settings: Settings, *, chunk_days: int | None = None, log: Callable[[str], None]
) -> Iterator[Mapping[str, str]]:
    """The environment for child processes; what was started here is stopped at the end.

    Args:
        settings: this process's.
        chunk_days: days a chunk of the hypertable covers; None leaves it as it is.
        log: called with the sentences a user should read.

    Raises:
        LocalServiceError: the local server does not start.
        DatabaseError: the database cannot be migrated.
        ConfigError: a URL cannot be read.
    """
    with ExitStack() as stack:
        database, dagster = settings.database_url, settings.dagster_url
        if dagster is not None:
            check_url(dagster, name=DAGSTER_URL)
        if database is None or dagster is None:
            server = stack.enter_context(
                LocalPostgres(settings.home, cache=settings.cache, log=log)
            )
            database = database or server.url(DATABASE)
            dagster = dagster or server.url(DAGSTER_DATABASE)
        upgrade(database, chunk_interval=timedelta(days=chunk_days) if chunk_days else None)
        yield {
            **FRUGAL,
            **settings.environment,
            CONFIG: str(settings.config_path),
            HOME: str(settings.home),
            LAKE: settings.lake,
            DATABASE_URL: database,
            DAGSTER_URL: dagster,
            DAGSTER_HOME: str(_dagster_home(settings)),
            EVENT_BATCH: settings.environment.get(EVENT_BATCH) or "100",
            # Else a backfill fails for good while the code server is down for a moment.
            "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
            "PATH": _path(settings.environment.get("PATH", "")),
        }


def project_file(name: str) -> Path:
    """A file of the project's top level (``dagster.yaml``, ``workspace.yaml``).

    Raises:
        LocalServiceError: the package was installed without them.
    """
    for folder in (Path.cwd(), _PROJECT):
        if (folder / name).is_file():
            return folder / name
    raise LocalServiceError(
        f"{name} is neither in {Path.cwd()} nor in {_PROJECT}.",
        hint="run the command in a checkout of the project.",
    )


def _dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME as the user set it; else a folder of ours with the project's instance file."""
    theirs = settings.environment.get(DAGSTER_HOME)
    if theirs:
        return Path(theirs)
    home = settings.home / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(project_file("dagster.yaml"), home / "dagster.yaml")
    return home


def _path(path: str) -> str:
    """This Python's programs first (``dagster``), the embedded server's last (``psql``)."""
    return ":".join(
        part
        for part in (str(Path(sys.executable).parent), path, str(installation() / "bin"))
        if part
    )
