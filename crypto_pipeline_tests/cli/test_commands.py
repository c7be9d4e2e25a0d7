"""candles, status, backfill and doctor, on a database and a lake with two days in them."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import psycopg
import pytest

from crypto_pipeline.core.gaps import Gap, PartitionState
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms, utc
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.gap_writer import Found, record_partitions
from crypto_pipeline.settings import CONFIG, DATABASE_URL, LAKE
from crypto_pipeline.simulator import SimulatorHandle
from crypto_pipeline_tests.cli.conftest import PROGRAM, Cli, write_pipeline

DAY = day_start_ms(date(2024, 3, 13))
SERIES = ("binance", "BTC/USDT", "1m")
BOTH_DAYS = ("--start", "2024-03-13", "--end", "2024-03-15")


def truth(simulator: SimulatorHandle, start: int, end: int) -> pd.DataFrame:
    return simulator.truth.candles("binance", "BTC/USDT", "1m", start, end)


# --- candles -------------------------------------------------------------------------------------


def test_csv_holds_every_candle_to_the_last_digit(
    stored: Cli, simulator: SimulatorHandle, tmp_path: Path
) -> None:
    """What a spreadsheet or another program reads; stdout and --output alike."""
    text = stored("candles", *SERIES, *BOTH_DAYS, "--format", "csv").stdout
    frame = pd.read_csv(io.StringIO(text))
    expected = truth(simulator, DAY, DAY + 2 * DAY_MS)
    times = pd.to_datetime(frame["open_time"]).dt.tz_localize(None)
    assert (times.astype("datetime64[ms]").astype("int64") == expected["open_time"]).all()
    for name in ("open", "high", "low", "close", "volume"):
        assert (frame[name] == expected[name]).all()
    assert frame["open_time"].iloc[0] == "2024-03-13T00:00:00Z"
    path = tmp_path / "out.csv"
    done = stored.inside("candles", *SERIES, *BOTH_DAYS, "--format", "csv", "--output", str(path))
    assert path.read_text() == text
    assert done.stdout == ""
    assert f"2,880 candles written to {path}" in done.stderr


def test_parquet_has_types_and_goes_through_a_pipe(stored: Cli, tmp_path: Path) -> None:
    """``crypto-pipeline candles … --format parquet > file``."""
    path = tmp_path / "out.parquet"
    with path.open("wb") as sink:
        subprocess.run(
            [PROGRAM, "candles", *SERIES, *BOTH_DAYS, "--format", "parquet"],
            cwd=stored.folder, env=stored.env, stdout=sink, check=True,
        )  # fmt: skip
    frame = pd.read_parquet(path)
    assert len(frame) == 2_880
    assert str(frame["open_time"].dtype) == "datetime64[ms, UTC]"
    assert str(frame["volume"].dtype) == "float64"
    assert set(frame["symbol"]) == {"BTC/USDT"}


def test_a_table_shows_the_window_half_open(stored: Cli) -> None:
    """START is in it, END is not; times may name a zone."""
    window = ("--start", "2024-03-13T10:00", "--end", "2024-03-13T12:03+02:00")
    lines = stored.inside("candles", *SERIES, *window).stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:2] == ["open_time", "open"]
    assert "2024-03-13 10:00:00" in lines[1]
    assert "2024-03-13 10:02:00" in lines[3]


@pytest.mark.parametrize("form", ["table", "csv", "parquet"])
def test_no_candles_is_said_and_is_no_error(stored: Cli, form: str, tmp_path: Path) -> None:
    """A time without candles, and a series nobody collects: the second is said, too."""
    path = tmp_path / "out"
    output = ("--format", form, "--output", str(path))
    window = ("--start", "2023-01-01", "--end", "2023-01-02")
    done = stored.inside("candles", *SERIES, *window, *output)
    assert "No candles of binance BTC/USDT 1m in this time are stored." in done.stderr
    assert "does not collect" not in done.stderr
    if form == "parquet":
        assert pd.read_parquet(path).empty
    elif form == "table":
        assert path.read_bytes() == b""
    done = stored.inside("candles", "binance", "BTC/USDC", "1m", *window, *output)
    assert "does not collect this series; of binance it has BTC/USDT 1m, ETH/USDT 1m" in done.stderr


def test_an_output_that_cannot_be_written_is_one_message(stored: Cli) -> None:
    """A folder that is not there was a traceback."""
    done = stored.inside("candles", *SERIES, *BOTH_DAYS, "--output", "/nosuch/x.csv", status=1)
    assert "/nosuch/x.csv" in done.stderr
    assert "No such file or directory" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(stored: Cli) -> None:
    """``crypto-pipeline candles … | head``."""
    done = subprocess.run(
        f"{PROGRAM} candles {' '.join(SERIES)} {' '.join(BOTH_DAYS)} | head -2",
        shell=True, cwd=stored.folder, env=stored.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


def test_csv_times_are_exact(stored: Cli) -> None:
    """fetched_at was cut to seconds: of two answers in one second nobody could tell the later."""
    minute = ("--start", "2024-03-13T10:00", "--end", "2024-03-13T10:01")
    text = stored.inside("candles", *SERIES, *minute, "--format", "csv").stdout
    frame = pd.read_csv(io.StringIO(text))
    with psycopg.connect(stored.environment[DATABASE_URL]) as conn:
        found = conn.execute(
            "SELECT fetched_at FROM candles WHERE exchange = 'binance' AND symbol = 'BTC/USDT'"
            " AND open_time = '2024-03-13T10:00Z'"
        ).fetchone()
    assert found is not None
    assert frame["open_time"].tolist() == ["2024-03-13T10:00:00Z"]
    assert len(frame["fetched_at"][0]) == len("2024-03-13T10:00:00.123Z")
    assert pd.Timestamp(frame["fetched_at"][0]) == found[0]


@pytest.fixture
def quiet_day(stored: Cli) -> Iterator[date]:
    """A day with one stored candle, twenty proven quiet hours after it and three unknown minutes."""
    day = date(2024, 3, 11)  # before the first day of the pipeline file: nobody else collects it
    start = day_start_ms(day)
    gap = {"symbol": "BTC/USDT", "timeframe": "1m", "evidence": "", "first_seen": start}
    gaps = [
        Gap(**gap, start=start + 60_000, end=start + 1_201 * 60_000, cause="no_trades"),
        Gap(
            **gap,
            start=start + 1_201 * 60_000,
            end=start + 1_204 * 60_000,
            cause="unknown",
            next_retry=start,
        ),
    ]
    state = PartitionState(
        expected=1_440,
        stored=1,
        missing={"no_trades": 1_200, "unknown": 3},
        answered_at=None,
        checked_at=start,
    )
    with connect(stored.environment[DATABASE_URL]) as conn:
        conn.execute(
            "INSERT INTO candles SELECT exchange, symbol, timeframe, %s, 1, 4, 0.5, 2.5, 9,"
            " fetched_at, run_id, source FROM candles WHERE symbol = 'BTC/USDT' LIMIT 1",
            [utc(start)],
        )
        record_partitions(conn, exchange="binance", found={day: Found(gaps, state)})
        yield day
        conn.execute("DELETE FROM candles WHERE open_time = %s", [utc(start)])
        conn.execute("DELETE FROM candle_gaps WHERE gap_start::date = %s", [day])
        conn.execute("DELETE FROM candle_partitions WHERE partition_date = %s", [day])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_fill_adds_flat_candles_and_their_cause(
    stored: Cli, quiet_day: date, form: str, tmp_path: Path
) -> None:
    """Only proven quiet minutes; without the flag there is neither such a candle nor the column."""
    path = tmp_path / "out"
    window = ("--start", str(quiet_day), "--end", "2024-03-12")
    output = ("--format", form, "--output", str(path))
    done = stored.inside("candles", *SERIES, *window, *output, "--fill")
    assert f"1,201 candles, 1,200 of them filled, written to {path}." in done.stderr
    frame = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
    assert list(frame)[-1] == "filled"
    assert frame["filled"].isna().tolist() == [True] + [False] * 1_200
    flat = frame[frame["filled"] == "no_trades"]
    assert len(flat) == 1_200
    assert (flat[["open", "high", "low", "close"]] == 2.5).all(axis=None)
    assert (flat["volume"] == 0).all()
    assert flat["fetched_at"].isna().all()
    stored.inside("candles", *SERIES, *window, *output)
    plain = pd.read_csv(path) if form == "csv" else pd.read_parquet(path)
    assert len(plain) == 1
    assert "filled" not in plain


def test_a_filled_table_has_blanks_where_there_is_nothing(stored: Cli, quiet_day: date) -> None:
    """``NaN`` and ``NaT`` are words of another program."""
    window = ("--start", str(quiet_day), "--end", f"{quiet_day}T00:03")
    lines = stored.inside("candles", *SERIES, *window, "--fill").stdout.splitlines()
    assert lines[0].split()[-1] == "filled"
    assert [line.split()[-1] for line in lines[1:]] == ["ohlcv", "no_trades", "no_trades"]
    assert not any("Na" in line for line in lines)


# --- status --------------------------------------------------------------------------------------


def test_status_json_is_one_document_on_stdout(stored: Cli) -> None:
    """For scripts: every configured series is in it, also the one that has nothing yet."""
    rows = json.loads(stored("status", "--json").stdout)
    assert [(row["exchange"], row["symbol"], row["timeframe"]) for row in rows] == [
        ("binance", "BTC/USDT", "1m"), ("binance", "ETH/USDT", "1m"), ("kraken", "BTC/USD", "1m")
    ]  # fmt: skip
    assert rows[0]["first"] == "2024-03-13T00:00:00+00:00"
    assert rows[0]["last"] == "2024-03-14T23:59:00+00:00"
    assert rows[0]["candles"] == 2_880
    assert rows[0]["missing"] == {}
    assert rows[0]["seconds_behind"] > 86_400
    kraken = rows[2]
    assert (kraken["first"], kraken["last"], kraken["candles"]) == (None, None, 0)


def test_status_counts_what_is_missing_by_cause(stored: Cli, quiet_day: date) -> None:
    """Candles, not gaps; what the ledger has of a series that nothing is stored of is told, too."""
    assert quiet_day < date(2024, 3, 13)
    rows = json.loads(stored.inside("status", "--json").stdout)
    assert rows[0]["missing"] == {"no_trades": 1_200, "unknown": 3}
    assert list(rows[0]["missing"]) == ["no_trades", "unknown"]
    assert rows[1]["missing"] == {}
    lines = [line.split() for line in stored.inside("status").stdout.splitlines()]
    assert lines[0][-3:] == ["missing", "by", "cause"]
    assert "1,203" in lines[1]
    assert lines[1][-4:] == ["1,200", "no_trades,", "3", "unknown"]
    assert lines[2][-1] == "–"


def test_status_says_what_each_request_budget_did(stored: Cli, tmp_path: Path) -> None:
    """A ban must be seen where people look; scripts find it in each row of the exchange."""
    paced = tmp_path / "pipeline.yaml"
    write_pipeline(tmp_path, None)
    with connect(stored.environment[DATABASE_URL]) as conn:
        conn.execute(
            "INSERT INTO request_budgets (name, requests, waited_seconds, refused, bans,"
            " blocked_until) VALUES ('kraken', 1234, 5.678, 2, 1, now() + interval '1 hour')"
        )
        rows = json.loads(stored.inside("status", "--json", **{CONFIG: str(paced)}).stdout)
        lines = stored.inside("status", **{CONFIG: str(paced)}).stdout.splitlines()
        conn.execute("TRUNCATE request_budgets")
    unused = {"requests": 0, "waited_seconds": 0, "refused": 0, "bans": 0, "blocked_until": None}
    assert [row["budget"] for row in rows[:2]] == [unused, unused]
    kraken = rows[2]["budget"]
    assert kraken.pop("blocked_until") > datetime.now(UTC).isoformat()
    assert kraken == {"requests": 1_234, "waited_seconds": 5.7, "refused": 2, "bans": 1}
    binance, kraken_line = (line.split() for line in lines[-2:])
    assert binance == ["binance", "0", "0.0", "0", "0", "–"]
    assert kraken_line[:5] == ["kraken", "1,234", "5.7", "2", "1"]
    assert kraken_line[5].endswith("Z")


def test_status_has_no_figures_of_an_exchange_without_a_budget(stored: Cli) -> None:
    """``enableRateLimit: false``: zeros would say that nothing was asked."""
    rows = json.loads(stored.inside("status", "--json").stdout)
    assert [row["budget"] for row in rows] == [None, None, None]
    assert "waited" not in stored.inside("status").stdout


def test_status_is_a_table_for_people(stored: Cli) -> None:
    """Thousands are separated, times end in Z, nothing is a dash."""
    lines = stored.inside("status").stdout.splitlines()
    assert lines[0].split()[:3] == ["exchange", "symbol", "timeframe"]
    assert "2,880" in lines[1]
    assert "2024-03-14T23:59:00Z" in lines[1]
    assert "–" in lines[3]


# --- backfill ------------------------------------------------------------------------------------


def test_backfill_that_is_not_complete_has_status_1(
    stored: Cli, simulator: SimulatorHandle
) -> None:
    """And says which partition lacks what; a mistake in the call has status 2 (test_usage)."""
    simulator.control.add_fault(act="status", status=503, exchange="kraken", endpoint="candles")
    done = stored("backfill", "kraken", "2024-03-14", "2024-03-14", status=1)
    assert "2024-03-14|kraken is not complete" in done.stderr
    assert "0 of 1 partitions are complete" in done.stderr


def test_backfill_says_each_thing_once(stored: Cli) -> None:
    """Each line of progress came twice: Dagster makes the logger more than once."""
    done = stored("backfill", "binance", "2024-03-13", "2024-03-14")
    lines = done.stderr.splitlines()
    assert "2024-03-13|binance to 2024-03-14|binance (2 of 2 days) …" in lines
    assert "2 of 2 partitions are complete." in lines
    assert any(line.startswith("  binance") for line in lines)
    assert len(set(lines)) == len(lines)


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_says_ok_to_a_healthy_deployment(stored: Cli, simulator: SimulatorHandle) -> None:
    """All five, with what was found; and it leaves nothing in the lake."""
    assert simulator.control.overview()
    before = sorted(Path(stored.environment[LAKE]).rglob("*"))
    lines = stored.inside("doctor").stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "ok    configuration", "ok    lake", "ok    database", "ok    Dagster", "ok    exchanges"
    ]  # fmt: skip
    assert "2 exchanges, 3 series" in lines[0]
    assert "binance, kraken list every configured symbol" in lines[4]
    assert sorted(Path(stored.environment[LAKE]).rglob("*")) == before


def test_doctor_says_what_is_wrong_with_each_part(
    stored: Cli, simulator: SimulatorHandle, tmp_path: Path
) -> None:
    """Everything at once: each part is judged by itself, and says what to do."""
    simulator.control.add_fault(act="status", status=451, exchange="kraken")
    (tmp_path / "lake").write_text("a file")
    write_pipeline(tmp_path, simulator, timeframes=["1m", "7h"])
    done = stored.inside(
        "doctor",
        status=1,
        **{
            CONFIG: str(tmp_path / "pipeline.yaml"),
            LAKE: str(tmp_path / "lake"),
            DATABASE_URL: "postgresql://nobody:FAKEPASSWORD@127.0.0.1:9/nowhere",
        },
    )
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines()}
    assert "does not divide a UTC day" in lines["WRONG configuration"]
    assert "cannot be written" in lines["WRONG lake"]
    assert "127.0.0.1" in lines["WRONG database"]
    assert "not checked: there is no database" in lines["WRONG Dagster"]
    assert "WRONG exchanges" in lines
    assert "FAKEPASSWORD" not in done.stdout + done.stderr


def test_doctor_tells_unreachable_and_unknown_exchanges(
    stored: Cli, simulator: SimulatorHandle, tmp_path: Path
) -> None:
    """A blocked address is not our mistake, a wrong symbol is."""
    simulator.control.add_fault(act="status", status=451, exchange="kraken")
    done = stored.inside("doctor", status=1)
    assert "WRONG exchanges: kraken cannot be asked for its symbols now: " in done.stdout
    assert "ok    configuration" in done.stdout
    simulator.control.clear_faults()
    write_pipeline(tmp_path, simulator, symbols=["BTC/USDT", "BTC/USD"])
    done = stored.inside("doctor", "--config", str(tmp_path / "pipeline.yaml"), status=1)
    assert "exchanges.binance.symbols: binance lists no 'BTC/USD'" in done.stdout


def test_doctor_without_a_file_still_checks_the_rest(stored: Cli, tmp_path: Path) -> None:
    """The first thing a new user runs in a wrong folder."""
    done = stored.inside("doctor", "--config", str(tmp_path / "nosuch.yaml"), status=1)
    assert "WRONG configuration: " in done.stdout
    assert "there is no such file" in done.stdout
    for part in ("lake", "database", "Dagster"):
        assert f"ok    {part}: " in done.stdout
