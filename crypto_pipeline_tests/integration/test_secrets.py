"""Secrets stay where they were given: whatever fails, no table, file or line of output has one.

Fake credentials of every kind go through real runs, recorded on a real Dagster database with the
project's own ``dagster.yaml``, and through commands. Then everything that was written is searched.
"""

from __future__ import annotations

import html
import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
import yaml
from click.testing import CliRunner
from psycopg import sql

from crypto_pipeline.cli.main import cli
from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.local import ServerInfo
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.settings import CONFIG, DAGSTER_URL, DATABASE_URL, HOME, LAKE, read_settings
from crypto_pipeline_tests.leaks import leaked, leaking_files, leaking_tables

DAY = datetime.now(UTC).date() - timedelta(days=2)
SECRETS = {
    "FAKE_API_KEY": "Zq1ApiKeyMark/+=&x",
    "FAKE_SECRET": "-----BEGIN FAKE-----\nZq2SigningMark\n-----END FAKE-----",
    "FAKE_PASSWORD": "pw<Zq3PassMark>\"'",
    "FAKE_PROXY_PASSWORD": "Zq4ProxyMark:é/",
}
KEYS = ("FAKE_API_KEY", "FAKE_SECRET")
DATABASE_PASSWORD = "Zq5DatabaseMark"
LAKE_PASSWORD = "Zq6LakeMark"
MARKS = [
    *("Zq1ApiKeyMark", "Zq2SigningMark", "Zq3PassMark", "Zq4ProxyMark"),
    *(DATABASE_PASSWORD, LAKE_PASSWORD),
]
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda s: quote(s, safe=""),
    "percent twice": lambda s: quote(quote(s, safe=""), safe=""),
    "html": html.escape,
    "json": json.dumps,
    "php json": lambda s: json.dumps(s).replace("/", "\\/"),
    "base64": lambda s: b64encode(s.encode()).decode(),
    "basic": lambda s: "Basic " + b64encode(f"user:{s}".encode()).decode(),
    "url": lambda s: f"https://x/?a=1&signature={quote(s)}",
}


class Echo(BaseHTTPRequestHandler):
    """Answers every request with its own headers and every secret in every form."""

    def do_GET(self) -> None:
        status, kind, known = self.server.answers  # type: ignore[attr-defined]
        shown = {**dict(self.headers), "path": self.path} | {
            f"{name} {form}": of(value)
            for form, of in FORMS.items()
            for name, value in SECRETS.items()
            if name in known
        }
        body = json.dumps({"code": -2015, "msg": shown}) if kind == "json" else f"<p>{shown}</p>"
        if kind == "first":  # the message is cut: its first secrets must be gone before
            body = "; ".join(shown.values())
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_CONNECT = do_GET  # noqa: N815 - the base class names them

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def echoing(status: int, kind: str, *known: str) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.answers = status, kind, known  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def dagster_url(server: ServerInfo) -> str:
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier("secrets_dagster")))
    return server.url("secrets_dagster")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, dagster_url: str) -> Path:
    """One home for all of it, so that all of it is searched."""
    home = tmp_path_factory.mktemp("secrets")
    shutil.copy(Path(__file__).parents[2] / "dagster.yaml", home / "dagster.yaml")
    return home


@pytest.fixture(scope="module")
def instance(home: Path, dagster_url: str) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DAGSTER_URL, dagster_url)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance


@pytest.fixture(scope="module")
def database_url(new_database: Callable[[], str]) -> str:
    return new_database()


def settings(
    home: Path, database: str, *, lake: str | None = None, **ccxt: Any
) -> tuple[dict[str, str], Path]:
    document = {
        "exchanges": {
            "binance": {
                "symbols": ["BTC/USDT"],
                "start": DAY,
                "ccxt": {"apiKey": "${FAKE_API_KEY}", "secret": "${FAKE_SECRET}", **ccxt},
                "retry": {"attempts": 1},
                "timeout_seconds": 3,
                "budget": {"egress": uuid4().hex},  # one exchange that blocks us stops the others
            }
        }
    }
    path = home / "pipeline.yaml"
    path.write_text(yaml.safe_dump(document))
    environment = {CONFIG: str(path), HOME: str(home), DATABASE_URL: database, **SECRETS}
    environment["FAKE_PROXY_QUOTED"] = quote(SECRETS["FAKE_PROXY_PASSWORD"], safe="")
    environment["FAKE_QUOTED_SECRET"] = quote(SECRETS["FAKE_SECRET"])
    return environment | ({LAKE: lake} if lake else {}), path


def urls(base: str) -> dict[str, Any]:
    return {"urls": {"api": dict.fromkeys(("public", "sapi", "fapiPublic", "dapiPublic"), base)}}


def with_password(url: str, host: str | None = None) -> str:
    """The database's URL with a wrong password, elsewhere if a host is given."""
    head, _, tail = url.rpartition("@")
    user = head.split("//")[1].split(":")[0]
    place = tail if host is None else f"{host}/{tail.split('/')[1]}"
    return f"postgresql://{user}:{DATABASE_PASSWORD}@{place}"


def closed() -> str:
    return "127.0.0.1:9"


@contextmanager
def failing(  # noqa: C901 - a table
    kind: str, database: str, home: Path
) -> Iterator[dict[str, str]]:
    """The environment of a deployment in which this fails."""
    password = "${FAKE_PROXY_QUOTED}"
    if kind.startswith("echo"):
        _, status, body = kind.split()
        with echoing(int(status), body, *KEYS, "FAKE_PASSWORD") as url:
            yield settings(home, database, password="${FAKE_PASSWORD}", **urls(url))[0]
    elif kind == "proxy 407":
        with echoing(407, "html", *KEYS, "FAKE_PROXY_PASSWORD") as url:
            proxy = url.replace("://", f"://user:{password}@")
            yield settings(home, database, httpProxy=proxy, **urls("http://exchange.invalid"))[0]
    elif kind == "proxy away":
        proxy = f"http://user:{password}@{closed()}"
        yield settings(home, database, httpProxy=proxy, **urls("http://exchange.invalid"))[0]
    elif kind == "signature in the url":
        signed = f"http://{closed()}/api?signature=${{FAKE_QUOTED_SECRET}}&x="
        yield settings(home, database, **urls(signed))[0]
    elif kind == "password in the url":
        yield settings(home, database, **urls(f"http://user:{password}@{closed()}"))[0]
    elif kind == "ccxt's constructor":
        yield settings(home, database, rateLimit="${FAKE_SECRET}")[0]
    elif kind == "wrong password":
        yield settings(home, with_password(database), **urls(f"http://{closed()}"))[0]
    elif kind == "database away":
        yield settings(home, with_password(database, closed()), **urls("http://x.invalid"))[0]
    elif kind == "unreadable database url":
        url = f"postgresql://user:a@{DATABASE_PASSWORD}/b@127.0.0.1/db"
        yield settings(home, url)[0]
    elif kind == "lake":
        lake = f"memory://user:{LAKE_PASSWORD}@lake/x"
        yield settings(home, database, lake=lake, **urls(f"http://{closed()}"))[0]
    else:
        raise AssertionError(kind)


KINDS = [
    *("echo 401 json", "echo 429 first", "echo 451 html", "echo 200 first", "proxy 407"),
    *("proxy away", "signature in the url", "password in the url"),
    *("ccxt's constructor", "wrong password", "database away", "unreadable database url", "lake"),
]


def test_nothing_that_runs_write_holds_a_secret(
    instance: dg.DagsterInstance,
    home: Path,
    database_url: str,
    dagster_url: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The event log, metadata, our tables, the lake, logs and output of a failed run of each kind."""
    failed, told = [], []
    for kind in KINDS:
        with failing(kind, database_url, home) as environment:
            try:
                definitions = build_defs(settings=read_settings(environment))
                result = definitions.resolve_job_def(OHLCV_JOB).execute_in_process(
                    instance=instance,
                    raise_on_error=False,
                    partition_key=f"{DAY}|binance",
                    asset_selection=[dg.AssetKey("raw_ohlcv")],
                    run_config={"loggers": {"console": {"config": {"log_level": "DEBUG"}}}},
                )
            except CryptoPipelineError as error:
                told.append(str(error))
            else:
                failed += [] if result.success else [kind]
    assert set(failed) >= set(KINDS) - {"lake"}
    shown = "".join([*capfd.readouterr(), *told, caplog.text])
    assert "***" in shown
    assert leaked(shown, MARKS) == set()
    assert leaking_tables(dagster_url, MARKS) == {}
    assert leaking_tables(database_url, MARKS) == {}
    assert leaking_files(home, MARKS) == {}
    events = "".join(row for (row,) in _rows(dagster_url, "SELECT event FROM event_logs"))
    for word in ("STEP_FAILURE", "binance: loading its markets", "Could not connect", "What to do"):
        assert word in events  # it is there that was searched


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(query).fetchall()


MISTAKES = {
    "a credential in the file": {"ccxt": {"apiKey": SECRETS["FAKE_API_KEY"]}},
    "of the wrong type": {"ccxt": {"options": "${FAKE_SECRET}"}},
    "in another key": {"ccxt": {"enableRateLimit": "${FAKE_PASSWORD}"}},
    "as a symbol": {"symbols": ["${FAKE_API_KEY}"]},
    "no such key": {"retry": {"attempts": "${FAKE_PASSWORD}"}},
    "no such variable": {"ccxt": {"apiKey": "${NO_SUCH}", "secret": SECRETS["FAKE_SECRET"]}},
    "unknown setting": {"ccxt": {"apiKeyy": "${FAKE_API_KEY}"}},
}
COMMANDS = {
    "wrong password": {DATABASE_URL: "wrong"},
    "lake that is away": {LAKE: f"ftp://user:{LAKE_PASSWORD}@{closed()}/lake"},
    "lake of no kind": {LAKE: f"nosuch://user:{LAKE_PASSWORD}@host/lake"},
    "dagster's url": {DAGSTER_URL: f"postgresql://user:a@{DATABASE_PASSWORD}/@127.0.0.1/db"},
    "dagster's password": {DAGSTER_URL: "wrong"},
}


@pytest.mark.parametrize("mistake", [*MISTAKES, *COMMANDS])
def test_no_command_says_a_secret(
    mistake: str, home: Path, database_url: str, dagster_url: str
) -> None:
    """``doctor`` shows what is wrong with everything that is configured, credentials included."""
    environment, path = settings(home, database_url, **urls(f"http://{closed()}"))
    environment |= {DAGSTER_URL: dagster_url, "DAGSTER_HOME": str(home)}
    if mistake in MISTAKES:
        document = yaml.safe_load(path.read_text())
        document["exchanges"]["binance"].update(MISTAKES[mistake])
        path.write_text(yaml.safe_dump(document))
    for name, value in COMMANDS.get(mistake, {}).items():
        environment[name] = with_password(database_url) if value == "wrong" else value
    outer = {name: None for name in os.environ if name.startswith(("CRYPTO", "DAGSTER"))}
    result = CliRunner().invoke(cli, ["doctor"], env={**outer, **environment})
    with suppress(OSError):
        path.unlink()
    assert result.exit_code == 1, result.output
    assert "WRONG" in result.output
    assert leaked(result.output + repr(result.exception), MARKS) == set()


def test_dagster_never_reads_an_unreadable_url(home: Path, database_url: str) -> None:
    """It hands it to libpq, whose complaint takes a part of the password for a host and quotes it."""
    environment, _ = settings(home, database_url)
    environment |= COMMANDS["dagster's url"]
    result = CliRunner().invoke(cli, ["exec", "--", "dagster", "run", "list"], env=environment)
    assert str(result.exception).startswith(f"{DAGSTER_URL}: The database URL cannot be read")
    assert leaked(repr(result.exception), MARKS) == set()


@pytest.mark.parametrize("form", FORMS)
def test_the_search_finds_a_secret_in_this_form(form: str) -> None:
    """Without this the tests above could not fail."""
    text = f"before {FORMS[form](SECRETS['FAKE_API_KEY'])} after"
    assert leaked(text, MARKS) == {"Zq1ApiKeyMark"}
    assert leaked("before *** after", MARKS) == set()
