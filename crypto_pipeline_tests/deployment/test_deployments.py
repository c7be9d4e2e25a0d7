"""Whole deployments: backfills launched as the UI launches them, and a newcomer's first command.

In one file, which one process runs from top to bottom: two deployments at once are more than two
cores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import psutil
import pytest
import yaml

from crypto_pipeline.core.timeframes import MINUTE_MS, to_ms
from crypto_pipeline.database.migrate import upgrade
from crypto_pipeline.errors import DatabaseError
from crypto_pipeline.local import DATABASE, LocalPostgres
from crypto_pipeline.orchestration.partitions import partition_key
from crypto_pipeline.simulator import SimulatorConfig, running_simulator
from crypto_pipeline_tests.deployment.conftest import Deployment, deployed
from crypto_pipeline_tests.integration.deployment_model import Deployment as Model
from crypto_pipeline_tests.integration.deployment_model import loaded
from crypto_pipeline_tests.leaks import is_pickle
from crypto_pipeline_tests.local.conftest import server_pid

#: More than all that one of them waits for, so that it can say what did not come.
pytestmark = pytest.mark.timeout(900)

SYMBOLS = {"binanceus": ["BTC/USDT", "BTC/USD", "BTC/USDC"], "kraken": ["BTC/USDC"]}
DAYS = {
    "binanceus": [date(2023, 3, 1) + timedelta(days=n) for n in range(21)],
    "kraken": [date(2023, 1, 1) + timedelta(days=n) for n in range(90)],
}
QUIET = {"binanceus": "filled", "kraken": "omitted"}
ROWS = {"binanceus": 90_720, "kraken": 56_717}
ASSETS = ["raw_ohlcv", "validated_ohlcv", "timescale_candles"]
CHECKS = {
    "raw_ohlcv": ["ohlcv_constraints", "every_request_answered"],
    "validated_ohlcv": ["candle_schema"],
    "timescale_candles": ["completeness", "stored_equals_validated", "seconds_behind_now"],
}

ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
RUNS = """query ($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) {
  __typename ... on Runs { results { runId status tags { key value } } } } }"""
PARTITIONS = """query ($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) {
  ... on AssetNode { partitionStats { numMaterialized numFailed } } } }"""
CHECK_STATUSES = """query ($asset: AssetKeyInput!) { assetNodeOrError(assetKey: $asset) {
  ... on AssetNode { assetChecksOrError { ... on AssetChecks { checks { name partitionStatuses {
    ... on AssetCheckMultiPartitionStatuses { ranges { primaryDimStartKey primaryDimEndKey
      secondaryDim { ... on AssetCheckDefaultPartitionStatuses { succeededPartitions
        failedPartitions inProgressPartitions skippedPartitions executionFailedPartitions }
      } } } } } } } } } }"""


@pytest.fixture(scope="module")
def deployment(module_home: Path, shared_data: Path) -> Iterator[Deployment]:
    simulated = SimulatorConfig.for_pipeline(
        {key: (key, symbols) for key, symbols in SYMBOLS.items()}, replay=shared_data / "candles"
    )
    unlimited = simulated.exchanges["kraken"].model_copy(update={"history_limit": 0})
    simulated = simulated.model_copy(
        update={"exchanges": {**simulated.exchanges, "kraken": unlimited}}
    )
    module_home.mkdir()
    with running_simulator(simulated) as simulator:
        document = {
            "exchanges": {
                key: {
                    "symbols": symbols,
                    "start": DAYS[key][0],
                    "ccxt": simulator.ccxt_config(key),
                    # the Kraken file leaves quiet minutes out, as its API does not
                    "habits": {"history": None, "quiet": QUIET[key]},
                }
                for key, symbols in SYMBOLS.items()
            }
        }
        path = module_home / "pipeline.yaml"
        path.write_text(yaml.safe_dump(document))
        with deployed(module_home, "--config", str(path)) as running:
            yield running


def backfill(deployment: Deployment, *exchanges: str) -> list[dict[str, Any]]:
    """Launch all days of the exchanges and wait for the runs; they are of 30 partitions each."""
    days = {exchange: DAYS[exchange] for exchange in exchanges}
    keys = [partition_key(exchange, day) for exchange in days for day in days[exchange]]
    launched = deployment.webserver.launch_backfill(ASSETS, keys)
    expected = sum(-(-len(each) // 30) for each in days.values())

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = deployment.webserver.query(RUNS, id=launched)["runsOrError"][
            "results"
        ]
        return found

    deployment.wait(
        lambda: (
            Counter(run["status"] for run in runs()).keys() <= ENDED and len(runs()) >= expected
        ),
        seconds=240,
        what="the runs of the backfill have ended",
    )
    return runs()


def test_real_candles_are_stored_value_by_value_in_few_runs_and_every_partition_is_green(
    deployment: Deployment, shared_data: Path
) -> None:
    """21 days of Binance.US and a quarter of Kraken: nothing lost, nothing invented, all judged."""
    runs = backfill(deployment, *DAYS)
    assert {run["status"] for run in runs} == {"SUCCESS"}
    tags = [{tag["key"]: tag["value"] for tag in run["tags"]} for run in runs]
    starts = [
        each.get("dagster/asset_partition_range_start") or each["dagster/partition"]
        for each in tags
    ]
    per_exchange = Counter(start.split("|")[1] for start in starts)
    assert all(count <= 3 for count in per_exchange.values()), per_exchange

    for exchange, count in ROWS.items():
        stored = pd.DataFrame(
            deployment.rows(
                "SELECT symbol, (extract(epoch FROM open_time) * 1000)::bigint,"
                f" open, high, low, close, volume FROM candles WHERE exchange = '{exchange}'"
                " AND open_time < '2023-04-01' ORDER BY symbol, open_time"
            ),
            columns=["symbol", "open_time", "open", "high", "low", "close", "volume"],
        )
        files = pd.concat(
            _file(shared_data, exchange, symbol) for symbol in sorted(SYMBOLS[exchange])
        )
        assert len(stored) == count
        pd.testing.assert_frame_equal(stored, files.reset_index(drop=True), check_exact=True)

    wanted = {partition_key(key, day) for key, days in DAYS.items() for day in days}
    for asset in ASSETS:
        key = {"path": [asset]}
        node = deployment.webserver.query(PARTITIONS, asset=key)["assetNodeOrError"]
        assert node["partitionStats"]["numFailed"] == 0
        assert node["partitionStats"]["numMaterialized"] >= len(wanted)
        statuses = _check_statuses(deployment, asset)
        assert sorted(statuses) == sorted(CHECKS[asset])
        for name, by_status in statuses.items():
            assert wanted <= by_status["succeededPartitions"], name
            others = {status: keys & wanted for status, keys in by_status.items()}
            del others["succeededPartitions"]
            assert not any(others.values()), (name, others)

    ((hypertable,),) = deployment.rows(
        "SELECT count(*) FROM timescaledb_information.hypertables WHERE hypertable_name = 'candles'"
    )
    assert hypertable == 1


def test_a_second_backfill_changes_no_row(deployment: Deployment) -> None:
    """Materializing again is always safe: no row of any exchange gets a new version."""
    versions = "SELECT exchange, symbol, open_time, xmin::text, ctid::text FROM candles WHERE open_time < '2023-04-01' ORDER BY 1, 2, 3"
    before = deployment.rows(versions)
    assert len(before) == sum(ROWS.values())
    assert {run["status"] for run in backfill(deployment, "binanceus")} == {"SUCCESS"}
    assert deployment.rows(versions) == before


def _file(shared_data: Path, exchange: str, symbol: str) -> pd.DataFrame:
    (path,) = (shared_data / "candles").glob(f"{exchange}-{symbol.replace('/', '_')}-1m-*.parquet")
    frame = pd.read_parquet(path)
    frame["open_time"] = (
        frame["open_time"].dt.tz_convert(None).astype("datetime64[ms]").astype("int64")
    )
    frame.insert(0, "symbol", symbol)
    return frame


def _check_statuses(deployment: Deployment, asset: str) -> dict[str, dict[str, set[str]]]:
    """By check and status, the partition keys."""
    node = deployment.webserver.query(CHECK_STATUSES, asset={"path": [asset]})["assetNodeOrError"]
    found: dict[str, dict[str, set[str]]] = {}
    for check in node["assetChecksOrError"]["checks"]:
        by_status = found.setdefault(check["name"], {})
        for span in check["partitionStatuses"]["ranges"]:
            first, last = (
                date.fromisoformat(span[f"primaryDim{end}Key"]) for end in ("Start", "End")
            )
            days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
            for status, exchanges in span["secondaryDim"].items():
                by_status.setdefault(status, set()).update(
                    partition_key(exchange, day) for exchange in exchanges for day in days
                )
    return found


def test_the_demo_has_candles_of_every_exchange_and_a_ui_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """No network, key, database or Docker: one command, candles in a hypertable, Ctrl-C ends it."""
    with deployed(tmp_path / "home", "--demo") as demo:
        demo.wait(
            lambda: "Candles of every exchange are there" in demo.said(),
            seconds=180,
            what="candles of every exchange",
        )
        demo.wait(
            lambda: len(demo.rows(_YESTERDAY)) == 3, seconds=120, what="a whole day of history"
        )
        demo.wait(lambda: len(demo.rows(_FRESH)) == 3, seconds=150, what="candles of these minutes")
        assert demo.rows(_HYPERTABLES) == [("candles",)]
        assert demo.rows("SELECT count(*) FROM rejected_candles") == [(0,)]
        # Days of history come first, ticks as they may. Coinbase leaves quiet minutes out: there is no
        # forming candle before a minute's first trade.
        demo.wait(
            lambda: set(demo.rows(_FORMING)) >= {("binance",), ("kraken",)},
            seconds=150,
            what="forming candles of a tick",
        )
        family = [demo.process.pid]
        family += [child.pid for child in psutil.Process(family[0]).children(recursive=True)]
        assert {address for pid in family for address in _listening(pid)} == {"127.0.0.1"}
        _holds_its_secrets(demo)


def _holds_its_secrets(demo: Deployment) -> None:
    """The database's password is in one file only and no process's arguments; nothing is pickled."""
    password = str(urlsplit(demo.database_url).password)
    assert [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if password in " ".join(process.info["cmdline"] or ())
    ] == []
    files = [
        path
        for path in demo.home.rglob("*")
        if path.is_file() and demo.home / "postgres" / "data" not in path.parents
    ]
    contents = {}
    for path in files:
        with suppress(FileNotFoundError):  # the deployment goes on meanwhile
            contents[path] = path.read_bytes()
    assert [path for path, content in contents.items() if password.encode() in content] == [
        demo.home / "postgres" / "password"
    ]
    assert [path for path, content in contents.items() if is_pickle(content)] == []


def _listening(pid: int) -> list[str]:
    """Addresses a process listens on; none if it has ended, as runs do."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return []
    return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]


_FORMING = "SELECT DISTINCT exchange FROM live_candles"
_HYPERTABLES = "SELECT hypertable_name FROM timescaledb_information.hypertables"
_YESTERDAY = """
SELECT exchange FROM candles
WHERE open_time >= date_trunc('day', now(), 'UTC') - interval '1 day'
  AND open_time < date_trunc('day', now(), 'UTC') AND timeframe = '1m' AND symbol LIKE 'BTC/%'
GROUP BY exchange HAVING count(*) > 1300
"""
_FRESH = """
SELECT exchange FROM candles WHERE open_time > now() - interval '5 minutes' GROUP BY exchange
"""


def test_whatever_of_it_is_killed_runs_again_and_candles_go_on(tmp_path: Path) -> None:
    """Nobody started the inner code server, the daemon or the postmaster again: all stood still."""
    home = tmp_path / "home"
    home.mkdir()
    simulated = SimulatorConfig.for_pipeline({"binance": ("binance", ["BTC/USDT"])})
    with running_simulator(simulated) as simulator:
        section = {
            "symbols": ["BTC/USDT"],
            "start": datetime.now(UTC).date(),
            "ccxt": simulator.ccxt_config("binance"),
        }
        path = home / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"exchanges": {"binance": section}}))
        with deployed(home, "--config", str(path)) as running:
            (code_server,) = _of(running, "dagster api grpc")
            code_server.kill()
            running.wait(
                lambda: (
                    len(_of(running, "api grpc")) == 1
                    and "code server of crypto_pipeline had died" in running.said()
                    and not running.webserver.broken_locations()
                ),
                seconds=120,
                what="the code server runs again",
            )
            psutil.Process(server_pid(home)).kill()
            for process in _of(running, "dagster._daemon"):
                process.kill()
            killed = time.time()
            running.wait(
                lambda: "Starting it again" in running.said() and _newest(running) > killed - 30,
                seconds=180,
                what="a candle of the time afterwards",
            )


def _of(deployment: Deployment, words: str) -> list[psutil.Process]:
    """Living processes of a deployment by a part of their command line."""
    found = []
    for process in psutil.Process(deployment.process.pid).children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def _newest(deployment: Deployment) -> float:
    try:
        ((at,),) = deployment.rows("SELECT extract(epoch FROM max(open_time)) FROM candles")
    except DatabaseError:  # not back yet
        return 0
    return float(at or 0)


OUTAGE_SYMBOLS = {
    "binance": [
        f"{base}/USDT"
        for base in ["BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "AVAX"]
    ],
    "kraken": [
        f"{base}/USD"
        for base in ["BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "AVAX"]
    ],
    "coinbaseexchange": [
        f"{base}/USD"
        for base in ["BTC", "ETH", "SOL", "XRP", "ADA", "DOGE", "LTC", "DOT", "LINK", "AVAX"]
    ],
}
OPEN = """
SELECT exchange, partition_date, complete FROM candle_partitions
WHERE NOT complete OR checked_at < partition_date + interval '1 day 3 minutes'
  AND partition_date < (now() AT TIME ZONE 'UTC')::date
"""
LOOKED_AT = "SELECT count(*) FROM candle_partitions"


def test_a_three_day_outage_heals_by_itself_within_five_minutes(tmp_path: Path) -> None:
    """The exchanges are away over two midnights and more; when they are back nobody does anything."""
    home = tmp_path / "home"
    home.mkdir()
    simulated = {
        key: {"symbols": symbols, "port": 0, "quiet_rate": 0.05}
        for key, symbols in OUTAGE_SYMBOLS.items()
    }
    began = datetime.now(UTC) - timedelta(days=3)
    with running_simulator(
        SimulatorConfig.parse({"exchanges": simulated}, origin="the test")
    ) as simulator:
        document = {
            "exchanges": {
                key: {
                    "symbols": symbols,
                    "start": began.date(),
                    "ccxt": simulator.ccxt_config(key),
                    "retry": {"attempts": 2, "first_wait_seconds": 0.1},
                }
                for key, symbols in OUTAGE_SYMBOLS.items()
            }
        }
        path = home / "pipeline.yaml"
        path.write_text(yaml.safe_dump(document))
        with LocalPostgres(home) as server:
            url = server.url(DATABASE)
            upgrade(url)
            model = Model(simulator, loaded(document), url, home, to_ms(began))
            model.tick()  # the last good minute
            for key in OUTAGE_SYMBOLS:
                simulator.control.stop_listening(key)
            for hours in range(6, 72, 11):
                model.at(to_ms(began) + hours * 3_600_000)
                model.tick()
            simulator.control.set_clock()
            with deployed(home, "--config", str(path)) as running:
                time.sleep(45)  # its runs fail, too
                assert {key for key, *_ in running.rows(OPEN)} == set(OUTAGE_SYMBOLS)
                for key in OUTAGE_SYMBOLS:
                    simulator.control.start_listening(key)
                days = (datetime.now(UTC).date() - began.date()).days + 1
                running.wait(
                    lambda: running.rows(LOOKED_AT)[0][0] >= 3 * days and not running.rows(OPEN),
                    seconds=600,  # just after midnight the sensor leaves yesterday to the schedule
                    what="every partition is complete",
                )
                now = to_ms(datetime.now(UTC))
                stored = model.candles()
                unproven = running.rows("SELECT * FROM candle_gaps WHERE next_retry IS NOT NULL")
        assert unproven == []
        settled = now // MINUTE_MS * MINUTE_MS - 4 * MINUTE_MS
        truth = model.truth(settled)
        truth = truth[(truth["exchange"] != "kraken") | (truth["volume"] > 0)]
        stored = stored[stored["open_time"] < settled]
        stored = stored[(stored["exchange"] != "kraken") | (stored["volume"] > 0)]
        pd.testing.assert_frame_equal(
            stored.reset_index(drop=True), truth.reset_index(drop=True), rtol=1e-9, atol=0
        )
