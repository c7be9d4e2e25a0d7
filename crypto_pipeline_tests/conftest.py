"""What many tests share: one local server, one database a test, pipelines over the simulator."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from psycopg import sql

from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.local import LocalPostgres, ServerInfo
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator
from crypto_pipeline_tests.pipelines import Pipeline

_TEMPLATE = "crypto_pipeline_template"
_SESSIONS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"

#: A suite that must be quick and never flaky.
settings.register_profile("suite", deadline=None, database=None, derandomize=True, max_examples=80)
settings.load_profile("suite")


def pytest_configure() -> None:
    """A job in the background of a script has Ctrl-C ignored, and so would all that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole deployments come first: of the processes of `make test` one is busy with them to the end.

    They mostly wait, so there are three on two cores.
    """
    items.sort(key=lambda item: item.path.parent.name != "deployment")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real candles and answers; they are not part of the project, so they may be absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder of real candles is not on this machine")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    """A real PostgreSQL, with TimescaleDB where it can be had."""
    home = tmp_path_factory.mktemp("server") / "home"
    with LocalPostgres(home) as info:
        yield info
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def new_database(server: ServerInfo) -> Callable[[], str]:
    """Makes a database with this version's tables, empty; gives its URL. It goes with the server."""
    with connect(server.url("postgres")) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_TEMPLATE)))
    upgrade(server.url(_TEMPLATE))
    with connect(server.url("postgres")) as conn:
        # TimescaleDB's scheduler connects to every database, and a template must be left alone.
        template = sql.Identifier(_TEMPLATE)
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(template))
        deadline = time.monotonic() + 20
        while conn.execute(_SESSIONS, [_TEMPLATE]).fetchall() and time.monotonic() < deadline:
            time.sleep(0.05)

    def make() -> str:
        name = sql.Identifier(f"test_{uuid.uuid4().hex[:12]}")
        with connect(server.url("postgres")) as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(name, sql.Identifier(_TEMPLATE))
            )
            # No test survives the machine: nobody waits for its disk.
            conn.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(name))
        return server.url(name.as_string().strip('"'))

    return make


@pytest.fixture
def simulate() -> Iterator[Callable[[SimulatorConfig], SimulatorHandle]]:
    """Starts simulators, real processes that end with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running_simulator(config))


@pytest.fixture
def pipeline(tmp_path: Path, new_database: Callable[[], str]) -> Callable[..., Pipeline]:
    """Makes a pipeline over a simulator: its own file, lake and database."""

    def make(simulator: SimulatorHandle, **options: object) -> Pipeline:
        return Pipeline.over(simulator, home=tmp_path, database_url=new_database(), **options)

    return make
