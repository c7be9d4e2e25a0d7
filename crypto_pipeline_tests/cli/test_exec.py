"""``exec``: a database for one command, its environment, its exit status, and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from crypto_pipeline.local import LocalPostgres
from crypto_pipeline.settings import (
    CONFIG,
    DAGSTER_HOME,
    DAGSTER_URL,
    DATABASE_URL,
    HOME,
    LAKE,
)
from crypto_pipeline_tests.cli.conftest import PROGRAM, Cli, write_pipeline

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A home whose database was made before, and is stopped."""
    folder = tmp_path_factory.mktemp("exec")
    write_pipeline(folder, None)
    cli = Cli(folder)
    cli("exec", "--", "true")
    return cli


@pytest.fixture(scope="class")
def running(used: Cli) -> Iterator[Cli]:
    """The same home while another user of its database runs: starting it costs half a second."""
    with LocalPostgres(used.folder / "home"):
        yield used


def server_runs(cli: Cli) -> bool:
    conf = f"config_file={(cli.folder / 'home').resolve()}/postgres/server.conf"
    return any(
        conf in (process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
    )


def wait_until_stopped(cli: Cli) -> None:
    deadline = time.monotonic() + 20
    while server_runs(cli):
        assert time.monotonic() < deadline, "the server was left running"
        time.sleep(0.05)


def test_the_server_it_started_is_stopped(used: Cli) -> None:
    """Nothing runs before, nothing after; in between the tables of this version are there."""
    assert not server_runs(used)
    script = f'psql -At "${DATABASE_URL}" -c "SELECT count(*) FROM candles"'
    assert used("exec", "--", "sh", "-c", script).stdout == "0\n"
    assert not server_runs(used)


class TestTheCommand:
    """What it gets and gives, while another user of the database keeps that running."""

    def test_the_environment_is_the_documented_one(self, running: Cli) -> None:
        """Any standard Dagster command works under it: programs, home, storage, our own variables."""
        shown = json.loads(running("exec", "--", "python", "-c", SHOW, FAKE_VARIABLE="x y").stdout)
        home = running.folder / "home"
        assert shown[HOME] == str(home)
        assert shown[LAKE] == str(home / "lake")
        assert shown[CONFIG] == str(running.folder / "pipeline.yaml")
        assert shown[DATABASE_URL].startswith("postgresql://")
        assert shown[DATABASE_URL].endswith("/crypto_pipeline")
        assert shown[DAGSTER_URL].endswith("/dagster")
        assert (Path(shown[DAGSTER_HOME]) / "dagster.yaml").is_file()
        assert shown["PATH"].startswith(str(Path(sys.executable).parent))
        assert shown["FAKE_VARIABLE"] == "x y"
        assert shown["MALLOC_ARENA_MAX"] == "2"  # runs give memory back
        assert shown["ARROW_DEFAULT_MEMORY_POOL"] == "system"

    def test_psql_finds_the_database_without_a_password_in_its_arguments(
        self, running: Cli
    ) -> None:
        """Arguments are shown to every user of the machine (ps); a URL there has the password."""
        shell = "\\! tr '\\\\0' ' ' < /proc/$PPID/cmdline"
        done = running("exec", "--", "psql", "-XAtc", "SELECT current_database()", "-c", shell)
        database, arguments = done.stdout.splitlines()
        assert database == "crypto_pipeline"
        assert "psql" in arguments
        assert "password" not in arguments
        assert "://" not in arguments

    def test_what_the_user_set_stays(self, running: Cli, tmp_path: Path) -> None:
        """A lake and a Dagster home of one's own."""
        theirs = {
            LAKE: str(tmp_path / "lake"),
            DAGSTER_HOME: str(tmp_path),
            "MALLOC_ARENA_MAX": "8",
        }
        shown = json.loads(running("exec", "--", "python", "-c", SHOW, **theirs).stdout)
        assert {name: shown[name] for name in theirs} == theirs

    @pytest.mark.parametrize(
        ("script", "status"),
        [("exit 77", 77), ("kill -TERM $$", 143)],
    )
    def test_the_exit_status_is_the_commands(self, running: Cli, script: str, status: int) -> None:
        """128 + n for signal n, as in every shell."""
        running("exec", "--", "sh", "-c", script, status=status)

    def test_options_of_the_command_are_its_own(self, running: Cli) -> None:
        """Also without ``--``: ``exec ls -h`` showed our help."""
        shown = running("exec", "echo", "-h", "--help", "--x=1", "--", "-n").stdout
        assert shown == "-h --help --x=1 -- -n\n"

    def test_streams_are_the_commands(self, running: Cli) -> None:
        """stdin, stdout and stderr go through untouched; nothing of ours is mixed in."""
        done = subprocess.run(
            [PROGRAM, "exec", "--", "sh", "-c", "cat; echo error >&2"],
            cwd=running.folder, env=running.env, input=b"\0\xffdata", capture_output=True, check=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == (b"\0\xffdata", b"error\n")

    def test_a_program_that_does_not_exist_is_one_message(self, running: Cli) -> None:
        """Not a traceback of Popen."""
        assert "no program '--nosuch'" in running("exec", "--nosuch", status=2).stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_then_the_server(used: Cli, number: signal.Signals) -> None:
    """SIGTERM is passed on; Ctrl-C reaches both of us through the terminal. We stay to clean up."""
    script = "trap 'echo got it; exit 5' TERM INT; echo ready; while :; do sleep 0.1; done"
    with used.start(
        "exec", "--", "sh", "-c", script, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.stdout.read() == "got it\n"
        assert process.wait(30) == 5
    assert not server_runs(used)


def test_sigterm_while_the_database_starts_leaves_nothing(used: Cli) -> None:
    """A supervisor that gives up early: the server was left running, with nobody to stop it."""
    with used.start("exec", "--", "sleep", "60", start_new_session=True) as process:
        deadline = time.monotonic() + 30
        while not server_runs(used):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 143
    wait_until_stopped(used)


def test_a_closed_terminal_leaves_nothing(used: Cli) -> None:
    """The window is closed: SIGHUP, and every word we still say fails. The server was left."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # our own parent may have it ignored
        os.chdir(used.folder)
        os.execve(PROGRAM, [PROGRAM, "exec", "--", "sh", "-c", "echo ready; sleep 60"], used.env)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1_000)
    assert server_runs(used)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (129, 128 + signal.SIGHUP, -signal.SIGHUP)
    wait_until_stopped(used)


def test_two_at_once_share_one_server(used: Cli) -> None:
    """The one that ends first does not take it from the other."""
    with used.start(
        "exec", "--", "sh", "-c", f'echo ready; read line; psql -At "${DATABASE_URL}" -c "SELECT 1"',
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as longer:  # fmt: skip
        assert longer.stdout is not None
        assert longer.stdout.readline() == "ready\n"
        used("exec", "--", "true")
        assert server_runs(used)
        assert longer.communicate("\n", timeout=30)[0] == "1\n"
        assert longer.returncode == 0
    assert not server_runs(used)
