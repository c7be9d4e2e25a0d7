"""The command as a process of its own, as users and scripts run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml
from click.testing import CliRunner, Result
from psycopg import sql

from crypto_pipeline.cli.main import cli
from crypto_pipeline.local import ServerInfo
from crypto_pipeline.settings import CONFIG, DAGSTER_URL, DATABASE_URL, HOME, LAKE
from crypto_pipeline.simulator import SimulatorConfig, SimulatorHandle, running_simulator

PROGRAM = str(Path(sys.executable).with_name("crypto-pipeline"))
START = date(2024, 3, 12)
NOW = 1_710_506_096_789  # 2024-03-15 12:34:56.789 UTC


@dataclass(frozen=True)
class Cli:
    """Runs ``crypto-pipeline`` in a folder, with an environment of its own."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        ours = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CRYPTO_PIPELINE", "DAGSTER"))
        }
        return {**ours, HOME: str(self.folder / "home"), **self.environment}

    def __call__(
        self, *arguments: str, status: int | None = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; the exit status must be the given one, and no traceback be shown."""
        done = subprocess.run(
            [PROGRAM, *arguments],
            cwd=self.folder,
            env={**self.env, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert status is None or done.returncode == status, f"{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def inside(self, *arguments: str, status: int = 0, **environment: str) -> Result:
        """The same in this process, which has imported everything: seconds less."""
        outer = {name: None for name in os.environ if name not in self.env}
        result = CliRunner().invoke(cli, arguments, env={**outer, **self.env, **environment})
        assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
        return result

    def start(self, *arguments: str, **settings: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, *arguments], cwd=self.folder, env=self.env, text=True, **settings
        )


def write_pipeline(folder: Path, simulator: SimulatorHandle | None, **changes: Any) -> None:
    """A pipeline file over the simulator's exchanges; ``changes`` replace keys of each."""
    sections = {
        "binance": {"symbols": ["BTC/USDT", "ETH/USDT"]},
        "kraken": {"symbols": ["BTC/USD"], "habits": {"history": None}},
    }
    document = {
        "exchanges": {
            key: {
                **section,
                "start": START,
                "ccxt": {} if simulator is None else simulator.ccxt_config(key),
                "retry": {"attempts": 1},
                "timeout_seconds": 5,
                **changes,
            }
            for key, section in sections.items()
        }
    }
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.fixture(scope="package")
def cli_simulator() -> Iterator[SimulatorHandle]:
    """Two exchanges whose clock runs from a known moment."""
    config = SimulatorConfig.parse(
        {
            "clock": {"starts_at": NOW},
            "exchanges": {
                "binance": {"symbols": ["BTC/USDT", "ETH/USDT"]},
                "kraken": {"symbols": ["BTC/USD"], "history_limit": 0, "quiet_rate": 0.2},
            },
        },
        origin="the tests",
    )
    with running_simulator(config) as handle:
        yield handle


@pytest.fixture
def simulator(cli_simulator: SimulatorHandle) -> SimulatorHandle:
    cli_simulator.control.reset()
    return cli_simulator


@pytest.fixture
def plain(tmp_path: Path) -> Cli:
    """Without any database, in an empty folder."""
    return Cli(tmp_path)


@pytest.fixture(scope="package")
def dagster_url(server: ServerInfo) -> str:
    """Storage of Dagster's, made once: its tables take seconds."""
    name = f"dagster_{uuid4().hex[:12]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url(name)


@pytest.fixture(scope="package")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
    new_database: Callable[[], str],
    dagster_url: str,
    cli_simulator: SimulatorHandle,
) -> Iterator[Cli]:
    """A deployment with two days of two exchanges in it, put there by ``backfill``."""
    folder = tmp_path_factory.mktemp("cli")
    write_pipeline(folder, cli_simulator)
    lake = folder / "home" / "lake"
    deployed = Cli(
        folder,
        {
            DATABASE_URL: new_database(),
            DAGSTER_URL: dagster_url,
            LAKE: str(lake),
            CONFIG: str(folder / "pipeline.yaml"),
        },
    )
    cli_simulator.control.reset()
    deployed("backfill", "binance", "2024-03-13", "2024-03-14")
    yield deployed
    shutil.rmtree(folder, ignore_errors=True)
