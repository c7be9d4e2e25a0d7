"""A month of minute runs: what the history takes, with maintenance and without, and what it costs.

``python -m crypto_pipeline_tests.benchmarks.history``: a whole deployment (`crypto-pipeline up`)
runs a backfill and some minutes of the real schedule; then what Dagster wrote of one minute is
copied into every minute of 30 days, twice: once left alone and maintained at the end, once
maintained every day. Asks a real webserver the UI's own queries. Fails if a partition loses its
state, or if the history grows beyond twice that of three days.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import yaml
from dagster_postgres import PostgresEventLogStorage

from crypto_pipeline.cli.environment import project_file, shared_environment
from crypto_pipeline.cli.webserver import Webserver
from crypto_pipeline.config.model import RetentionConfig
from crypto_pipeline.database.connection import connect
from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.local.children import running_group
from crypto_pipeline.local.postgres import DAGSTER_DATABASE
from crypto_pipeline.local.processes import free_port
from crypto_pipeline.orchestration.history import GROWING, History
from crypto_pipeline.orchestration.maintenance import MAINTENANCE_JOB, maintain
from crypto_pipeline.settings import CONFIG, HOME, read_settings
from crypto_pipeline.simulator import SimulatorConfig, running_simulator
from crypto_pipeline_tests.benchmarks.minute import BASES, QUOTES
from crypto_pipeline_tests.benchmarks.ui_queries import AssetPage, states
from crypto_pipeline_tests.dagster_history import Template, copy_database, minutes
from crypto_pipeline_tests.deployment.conftest import Deployment, deployed

_ASSETS = ("raw_ohlcv", "validated_ohlcv", "timescale_candles")
_BACKFILLED_DAYS = 5
_STEADY = "dagster_maintained_daily"
_RUNS = """
SELECT r.run_id FROM runs r JOIN run_tags t ON t.run_id = r.run_id
WHERE t.key = '.dagster/scheduled_execution_time' AND r.status = 'SUCCESS' AND t.value = (
    SELECT value FROM run_tags JOIN runs USING (run_id)
    WHERE key = '.dagster/scheduled_execution_time' AND status = 'SUCCESS'
    GROUP BY value HAVING count(*) = 3 ORDER BY value DESC LIMIT 1)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 if the history is bounded and no partition lost its state."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        _record(home, days=options.days)
        figures = _measure(home, days=options.days)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text)
    bounded = max(figures["bytes maintained daily"], figures["bytes after compacting"])
    return int(figures["partitions that changed"] > 0 or bounded > 2 * figures["bytes at 3 days"])


def _record(home: Path, *, days: int) -> None:
    """Genuine runs: a backfill of days the copies leave alone, and some minutes."""
    symbols = {key: [f"{base}/{quote}" for base in BASES[:2]] for key, quote in QUOTES.items()}
    start = datetime.now(UTC).date() - timedelta(days=days + _BACKFILLED_DAYS + 1)
    with running_simulator(
        SimulatorConfig.for_pipeline({key: (key, names) for key, names in symbols.items()})
    ) as simulator:
        document = {
            "exchanges": {
                key: {"symbols": names, "start": start, "ccxt": simulator.ccxt_config(key)}
                for key, names in symbols.items()
            }
        }
        (home / "pipeline.yaml").write_text(yaml.safe_dump(document))
        with deployed(home, "--config", str(home / "pipeline.yaml")) as deployment:
            wanted = [
                f"{start + timedelta(days=n)}|{key}"
                for n in range(_BACKFILLED_DAYS)
                for key in symbols
            ]
            backfill = deployment.webserver.launch_backfill(_ASSETS, wanted)
            deployment.wait(
                lambda: _ended(deployment, backfill), seconds=240, what="the backfill has ended"
            )
            with _dagster(home) as conn:
                deployment.wait(
                    lambda: len(conn.execute(_RUNS).fetchall()) == 3,
                    seconds=240,
                    what="a minute's runs of all exchanges have succeeded",
                )


def _ended(deployment: Deployment, backfill: str) -> bool:
    answer = deployment.webserver.query(
        "query ($id: String!) { partitionBackfillOrError(backfillId: $id) {"
        " ... on PartitionBackfill { status } } }",
        id=backfill,
    )
    return bool(answer["partitionBackfillOrError"]["status"] == "COMPLETED_SUCCESS")


def _measure(home: Path, *, days: int) -> dict[str, Any]:
    settings = read_settings({HOME: str(home), CONFIG: str(home / "pipeline.yaml")})
    with (
        LocalPostgres(home) as server,
        shared_environment(settings, log=_say) as environment,
        connect(server.url("postgres")) as admin,
    ):
        copy_database(admin, DAGSTER_DATABASE, _STEADY)
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        start = (now - timedelta(days=days)).replace(hour=0, minute=0)
        with _dagster(home) as conn:
            figures = _grow(conn, start, now)
            with _webserver(environment) as webserver:
                before, page = states(webserver, _ASSETS), AssetPage(webserver, _ASSETS[0])
                page.seconds()
                figures["asset page seconds, unmaintained"] = page.seconds()
                _say(json.dumps(figures, indent=2))
                figures |= _maintain(conn, environment)
                # What the UI has cached would hide what the events no longer say.
                conn.execute("UPDATE asset_keys SET cached_status_data = NULL")
                after = states(webserver, _ASSETS)
                figures["partition states"] = len(before)
                figures["partitions that changed"] = sum(
                    before.get(key) != after.get(key) for key in before.keys() | after.keys()
                )
                figures["asset page seconds"] = page.seconds()
                _say(json.dumps(figures, indent=2))
        figures |= _maintained_daily(server.url(_STEADY), start, now)
    return figures


def _grow(conn: psycopg.Connection, start: datetime, end: datetime) -> dict[str, Any]:
    """A month that nobody maintains; its size after three days and at its end."""
    template = _template(conn)
    third = start + timedelta(days=3)
    written = template.write(minutes(start, third))
    at_three = _size(conn)
    for day in _days(third, end):
        written += template.write(minutes(*day))
    return {
        "runs written": written,
        "bytes a run": round(at_three / (3 * 1_440 * 3)),
        "bytes at 3 days": at_three,
        "bytes unmaintained": _size(conn),
    }


def _maintain(conn: psycopg.Connection, environment: Mapping[str, str]) -> dict[str, Any]:
    """The job as Dagster runs it, until it leaves nothing; then once more, compacting."""
    runs, began = 0, time.monotonic()
    while True:
        _run_job(environment)
        runs += 1
        if _newest_report(conn)["runs left for the next time"] == 0:
            break
    seconds = time.monotonic() - began
    figures = {
        "maintenance runs": runs,
        "maintenance seconds": round(seconds, 1),
        "bytes after maintenance": _size(conn),
    }
    began = time.monotonic()
    _run_job(environment, compact=True)
    report = _newest_report(conn)
    return {
        **figures,
        "compacting seconds": round(time.monotonic() - began, 1),
        "bytes after compacting": _size(conn),
        "runs remembered": report["runs remembered"],
        "runs kept for their state": report["runs kept for their state"],
    }


def _run_job(environment: Mapping[str, str], *, compact: bool = False) -> None:
    config = Path(environment[HOME]) / "maintenance.yaml"
    op = {"bound_run_history": {"config": {"compact": compact}}}
    config.write_text(yaml.safe_dump({"ops": op}))
    command = ["dagster", "job", "execute", "-m", "crypto_pipeline.definitions"]
    subprocess.run(
        [*command, "-j", MAINTENANCE_JOB, "--config", str(config)],
        env=dict(environment),
        check=True,
        stdout=sys.stderr,
    )


def _newest_report(conn: psycopg.Connection) -> dict[str, int]:
    ((event,),) = conn.execute(
        "SELECT event FROM event_logs WHERE asset_key = '[\"run_history\"]'"
        " AND dagster_event_type = 'ASSET_MATERIALIZATION' ORDER BY id DESC LIMIT 1"
    ).fetchall()
    data = json.loads(event)["dagster_event"]["event_specific_data"]["materialization"]
    return {
        entry["label"]: entry["entry_data"]["value"]
        for entry in data["metadata_entries"]
        if "value" in entry["entry_data"]
    }


def _maintained_daily(url: str, start: datetime, end: datetime) -> dict[str, Any]:
    """The same month with maintenance at the end of each day (in earnest it is hourly)."""
    log = logging.getLogger("maintained daily")
    largest, slowest = 0, 0.0
    storage = PostgresEventLogStorage(url)
    with connect(url) as conn, storage.index_connection() as connection:
        template = _template(conn)
        for day in _days(start, end):
            template.write(minutes(*day))
            report = maintain(
                History(connection), RetentionConfig(), day[1], log=log, seconds=3_600
            )
            largest, slowest = max(largest, _size(conn)), max(slowest, report["seconds"])
        return {
            "bytes maintained daily": _size(conn),
            "bytes maintained daily, at most": largest,
            "daily maintenance seconds, at most": slowest,
        }


def _template(conn: psycopg.Connection) -> Template:
    conn.execute("SET synchronous_commit = off")
    return Template(conn, [run for (run,) in conn.execute(_RUNS)])


def _days(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        yield start, min(start + timedelta(days=1), end)
        start += timedelta(days=1)


def _size(conn: psycopg.Connection) -> int:
    return sum(
        conn.execute("SELECT pg_total_relation_size(%s)", [table.name]).fetchall()[0][0]
        for table in GROWING
    )


@contextmanager
def _dagster(home: Path) -> Iterator[psycopg.Connection]:
    with LocalPostgres(home) as server, connect(server.url(DAGSTER_DATABASE)) as conn:
        yield conn


@contextmanager
def _webserver(environment: Mapping[str, str]) -> Iterator[Webserver]:
    port = free_port()
    log = Path(environment[HOME]) / "webserver.log"
    with running_group(
        ["dagster-webserver", "-w", str(project_file("workspace.yaml")), "-p", str(port)],
        environment,
        output=log,
    ) as process:
        webserver = Webserver(f"http://127.0.0.1:{port}")
        webserver.wait_ready(timeout=120, alive=lambda: process.poll() is None)
        yield webserver


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
