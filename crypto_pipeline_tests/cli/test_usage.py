"""Help is instant, mistakes are one clear message on stderr, and none shows a traceback."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from crypto_pipeline.cli.main import _COMMANDS
from crypto_pipeline_tests.cli.conftest import PROGRAM, Cli, write_pipeline

_HEAVY = {"dagster", "ccxt", "pandas", "numpy", "pyarrow", "sqlalchemy", "psycopg", "aiohttp"}
_IMPORTED = f"""
import sys
from crypto_pipeline.cli.main import main
sys.argv = ["crypto-pipeline", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert end.code in (0, None)
sys.stderr.write(",".join(sorted({_HEAVY!r} & set(sys.modules))))
"""


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_help_is_there_and_imports_nothing_heavy(command: str) -> None:
    """Dagster and ccxt take seconds to import; nobody waits for them to read a help text."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTED, *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Usage: ")
    assert "-h, --help" in done.stdout


def test_help_is_fast_and_lists_every_command() -> None:
    """With everything a process start costs."""
    began = time.monotonic()
    listed = subprocess.run([PROGRAM, "-h"], capture_output=True, text=True, check=True).stdout
    assert time.monotonic() - began < 3
    for name, (_, text) in _COMMANDS.items():
        assert f"{name} " in listed
        assert text in " ".join(listed.split())


def test_the_version_is_the_packages(plain: Cli) -> None:
    """For bug reports."""
    assert "version" in plain("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuch"], "No such command 'nosuch'"),
        (["up", "--port", "0"], "0 is not in the range 1<=x<=65535"),
        (["up", "extra"], "unexpected extra argument"),
        (["exec"], "Missing argument 'CMD"),
        (["backfill", "binance"], "Missing argument 'START'"),
        (["backfill", "binance", "yesterday", "today"], "'yesterday' is not a UTC day"),
        (["backfill", "binance", "2024-02-30", "today"], "'2024-02-30' is not a UTC day"),
        (["backfill", "binance", "2024-03-14", "2024-03-13"], "END 2024-03-13 is before START"),
        (["backfill", "binance", "2024-03-13", "2999-01-01"], "2999-01-01 has not come yet"),
        (["candles", "binance", "BTC/USDT"], "Missing argument 'TIMEFRAME'"),
        (["candles", "binance", "BTC/USDT", "1m", "--start", "noon"], "'noon' is not a time like"),
        (["candles", "binance", "BTC/USDT", "1m", "--format", "xml"], "'xml' is not one of"),
        (["candles", "binance", "BTC/USDT", "1m", "--start", "2024-01-02", "--end", "2024-01-02"],
         "is not before END"),
        (["candles", "binance", "BTC/USDT", "1m", "--end", "0001-01-01"], "is not before END"),
        (["status", "--xml"], "No such option"),
        (["simulate", "--port", "70000"], "70000 is not in the range"),
        (["simulate", "--config", "nosuch.yaml"], "'nosuch.yaml' does not exist"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_clear_message(plain: Cli, arguments: list[str], expected: str) -> None:
    """Exit status 2, as for every Unix command; nothing on stdout, where data is expected."""
    write_pipeline(plain.folder, None)
    done = plain(*arguments, status=2)
    assert expected in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) <= 5
    assert not (plain.folder / "home").exists()  # nothing was started for it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "pipeline.yaml: there is no such file. What to do: create it"),
        ("", "pipeline.yaml: holds no mapping"),
        ("exchanges: {binance: {symbols: [BTC/USDT], start: soon}}", "exchanges.binance.start: "),
        (
            "exchanges: {binance: {symbols: [B/C], start: 2024-01-01}}\nlive: {rereads: 1}",
            "live.rereads: there is no such key. Did you mean reread?",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_before_anything_starts(
    plain: Cli, text: str | None, expected: str
) -> None:
    """No database is initialised, no schedule runs, on a file that cannot be right."""
    if text is not None:
        (plain.folder / "pipeline.yaml").write_text(text)
    done = plain("backfill", "binance", "2024-01-01", "today", status=2)
    assert done.stderr.startswith("Error: ")
    assert expected in done.stderr
    assert not (plain.folder / "home" / "postgres").exists()


def test_up_refuses_a_mistake_before_anything_starts(plain: Cli) -> None:
    """The first command a new user runs."""
    (plain.folder / "other.yaml").write_text("exchange: {}")
    done = plain("up", "--config", "other.yaml", "--port", "39999", status=2)
    assert "other.yaml: exchange: there is no such key. Did you mean exchanges?" in done.stderr
    assert not (plain.folder / "home" / "postgres").exists()


@pytest.mark.parametrize(
    "arguments",
    [["backfill", "okx", "2024-03-13", "2024-03-13"], ["candles", "okx", "BTC/USDT", "1m"]],
)
def test_an_unknown_exchange_is_told_with_the_known_ones(plain: Cli, arguments: list[str]) -> None:
    """The exchange's key in the file, not ccxt's id."""
    write_pipeline(plain.folder, None)
    done = plain(*arguments, status=2)
    assert "pipeline.yaml has no exchange 'okx'. What to do: choose from binance, kraken." in done.stderr  # fmt: skip
    assert not (plain.folder / "home" / "postgres").exists()


def test_days_before_the_exchanges_start_are_refused(plain: Cli) -> None:
    """They are no partitions: Dagster would refuse them with its own, longer words."""
    write_pipeline(plain.folder, None)
    done = plain("backfill", "binance", "2024-01-01", "2024-03-13", status=2)
    assert "exchanges.binance.start is 2024-03-12, after 2024-01-01" in done.stderr


def test_simulate_runs_until_it_is_stopped(plain: Cli) -> None:
    """Says where each exchange is, and ends with status 0 on SIGTERM."""
    write_pipeline(plain.folder, None)
    with plain.start("simulate", "--port", "0", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(3)]
        assert lines[0].startswith("binance: http://127.0.0.1:")
        assert "Ctrl-C stops it" in lines[2]
        process.terminate()
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()


def test_simulate_refuses_exchanges_it_does_not_speak(plain: Cli) -> None:
    """Told by the pipeline file's key."""
    (plain.folder / "pipeline.yaml").write_text(
        "exchanges: {okx: {symbols: [BTC/USDT], start: 2024-01-01}}"
    )
    assert "does not speak 'okx'" in plain("simulate", status=2).stderr


def test_output_that_nobody_reads_to_the_end_is_no_traceback(plain: Cli) -> None:
    """``crypto-pipeline --help | head -1``."""
    done = subprocess.run(
        f"{PROGRAM} --help | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert Path(PROGRAM).name in done.stdout
