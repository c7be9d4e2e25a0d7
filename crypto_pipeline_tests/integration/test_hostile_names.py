"""Names and texts from outside stay data: in paths, in SQL, in the UI, on a terminal, in files."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import psycopg
import pytest
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster_graphql.test.utils import execute_dagster_graphql

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS, day_start_ms
from crypto_pipeline.database.connection import connect
from crypto_pipeline.orchestration.io_managers import NoIOManager, _query
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.plaintext import shown
from crypto_pipeline.simulator import SimulatorConfig, running_simulator
from crypto_pipeline_tests.leaks import is_pickle, pickles
from crypto_pipeline_tests.pipelines import Pipeline

#: What ccxt, the configuration and the exchange all take for a symbol.
SYMBOLS = (
    "../..",
    "<IMG_SRC=X_ONERROR=ALERT(1)>/![P](EVIL)",
    "';DROP_TABLE_CANDLES;--/\"$1%S%(A)S{0}",
    "\\X00\\/[LINK](WWW.EVIL.EXAMPLE)",
)
#: An answer that commands a terminal, a page and a statement.
BODY = (
    "\x1b[2J\x1b]0;owned\x07 <script>alert(1)</script> ![x](https://evil.example/p)"
    " '; DROP TABLE candles; -- \u202e {0} %s -1100"
)
DAY = date(2024, 3, 14)
NOON = day_start_ms(DAY) + DAY_MS // 2
KEY = f"{DAY}|binance"

EVENTS = """
query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events { __typename
  ... on MessageEvent { message }
  ... on MaterializationEvent { description label metadataEntries { ...entry } }
  ... on AssetCheckEvaluationEvent { evaluation { checkName description metadataEntries { ...entry } } }
  ... on ExecutionStepFailureEvent { error { message }
      failureMetadata { description metadataEntries { ...entry } } }
  ... on HandledOutputEvent { managerKey }
} } } }
fragment entry on MetadataEntry { __typename label description
  ... on TextMetadataEntry { text } ... on PathMetadataEntry { path }
  ... on TableMetadataEntry { table { records schema { columns { name description } } } } }
"""


@dataclass(frozen=True)
class Run:
    """A whole run with hostile names, and what the UI is told of it."""

    candles: Pipeline
    success: bool
    events: list[dict[str, Any]]

    def of_kind(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["__typename"] == name]

    @property
    def metadata(self) -> list[dict[str, Any]]:
        holders = [*self.of_kind("MaterializationEvent")]
        holders += [event["evaluation"] for event in self.of_kind("AssetCheckEvaluationEvent")]
        holders += [e["failureMetadata"] or {} for e in self.of_kind("ExecutionStepFailureEvent")]
        return [entry for holder in holders for entry in holder.get("metadataEntries", ())]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, new_database: Callable[[], str]
) -> Iterator[dict[str, Run]]:
    """One run of today's that stores all but one bad candle, one that is refused all it asks for."""
    config = SimulatorConfig.parse(
        {"clock": {"frozen_at": NOON}, "exchanges": {"binance": {"symbols": list(SYMBOLS)}}},
        origin="the test",
    )
    home = tmp_path_factory.mktemp("hostile")
    with running_simulator(config) as simulator, pytest.MonkeyPatch.context() as patch:
        candles = Pipeline.over(simulator, home=home, database_url=new_database(), start=DAY)
        patch.setenv("DAGSTER_HOME", str(home / "dagster"))
        (home / "dagster").mkdir()
        (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
            candles.__dict__["instance"] = instance
            simulator.control.add_fault(
                act="bad_candles", spoil="text", open_times=[NOON - DAY_MS // 4]
            )
            done = {"stored": candles.run(KEY, may_fail=True)}
            simulator.control.clear_faults()
            simulator.control.set_clock(frozen_at=NOON + 5 * MINUTE_MS)
            simulator.control.add_fault(endpoint="candles", act="status", status=400, body=BODY)
            done["refused"] = candles.run(KEY, may_fail=True)
            with WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as workspace:
                context = workspace.create_request_context()
                yield {
                    name: Run(
                        candles,
                        result.success,
                        execute_dagster_graphql(context, EVENTS, {"run": result.run_id}).data[
                            "logsForRun"
                        ]["events"],
                    )
                    for name, result in done.items()
                }


def test_hostile_symbols_are_collected_and_stored_like_any_other(runs: dict[str, Run]) -> None:
    """They are values: of a request, a column, a category; never a part of a path or a statement."""
    run = runs["stored"]
    stored = run.candles.candles()
    assert tuple(sorted(set(stored["symbol"]))) == tuple(sorted(SYMBOLS))
    truth = run.candles.truth("binance", day_start_ms(DAY), NOON)
    bad = truth["open_time"] == NOON - DAY_MS // 4
    assert stored.equals(truth[~bad].reset_index(drop=True))
    gaps = run.candles.rows("SELECT symbol, cause FROM candle_gaps WHERE cause = 'rejected'")
    assert sorted(gaps) == sorted((symbol, "rejected") for symbol in SYMBOLS)
    refused = run.candles.rows("SELECT DISTINCT symbol FROM rejected_candles")
    assert sorted(refused) == sorted((symbol,) for symbol in SYMBOLS)


def test_no_file_is_outside_of_its_place(runs: dict[str, Run]) -> None:
    """One partition is one file, named by exchange and day; ``../..`` is nobody's folder."""
    lake = Path(runs["stored"].candles.settings.lake)
    assert sorted(str(p.relative_to(lake)) for p in lake.rglob("*") if p.is_file()) == [
        f"{zone}/exchange=binance/date={DAY}/candles.parquet" for zone in ("raw", "validated")
    ]
    beside = {path.name for path in lake.parent.iterdir()}
    assert (
        beside == {"lake", "pipeline.yaml", "dagster", "storage", "history", "schedules"} & beside
    )


def test_the_ui_gets_no_markdown_that_came_from_outside(runs: dict[str, Run]) -> None:
    """It renders descriptions and Markdown metadata; text and tables it shows as they are."""
    assert runs["stored"].success
    assert not runs["refused"].success
    kinds = set()
    for run in runs.values():
        kinds |= {entry["__typename"] for entry in run.metadata}
        rendered = [entry["description"] for entry in run.metadata]
        rendered += [event["description"] for event in run.of_kind("MaterializationEvent")]
        rendered += [
            column["description"]
            for entry in run.metadata
            if entry["__typename"] == "TableMetadataEntry"
            for column in entry["table"]["schema"]["columns"]
        ]
        assert [text for text in rendered if text] == []
        for event in run.of_kind("AssetCheckEvaluationEvent"):
            description = event["evaluation"]["description"]
            for hostile in ("![", "](", "<IMG", "<script", "WWW.", "evil"):
                assert hostile not in description
    assert kinds <= {
        "TextMetadataEntry",
        "PathMetadataEntry",
        "TableMetadataEntry",
        "IntMetadataEntry",
        "FloatMetadataEntry",
        "BoolMetadataEntry",
    }
    late = [
        event["evaluation"]["description"]
        for event in runs["stored"].of_kind("AssetCheckEvaluationEvent")
        if event["evaluation"]["checkName"] == "seconds_behind_now"
    ]
    assert len(late) == 1


def test_an_exchanges_text_commands_no_terminal(runs: dict[str, Run]) -> None:
    """It is quoted in the run's error, its log lines and its metadata, without what a terminal obeys."""
    failure = runs["refused"].of_kind("ExecutionStepFailureEvent")[0]["error"]["message"]
    assert "\\x1b[2J\\x1b]0;owned" in failure  # its words are there
    assert "-1100" in failure
    for run in runs.values():
        for event in run.events:
            message = event.get("message") or ""
            assert shown(message) == message
        for entry in run.metadata:
            text = entry.get("text") or "".join((entry.get("table") or {}).get("records", ()))
            assert shown(text) == text
    for (evidence,) in runs["refused"].candles.rows("SELECT evidence FROM candle_gaps"):
        assert shown(evidence) == evidence


def test_the_shown_query_is_the_partitions_own(runs: dict[str, Run]) -> None:
    """It is made to be pasted into psql."""
    run = runs["stored"]
    (query,) = [entry["text"] for entry in run.metadata if entry["label"] == "query"]
    assert len(run.candles.rows(query)) == len(run.candles.candles())


@pytest.mark.parametrize(
    "exchange",
    ["o'neill", "'; DROP TABLE candles; --", "\\'; SELECT 1 --", "%s %(a)s {0}", '"', "$$", "é\n"],
)
def test_the_shown_query_is_quoted_whatever_the_exchange_is_called(
    shared_database: str, exchange: str
) -> None:
    """The configuration lets no such key in; the statement does not rely on it."""
    with connect(shared_database) as conn:
        for name in (exchange, "another"):
            conn.execute(
                "INSERT INTO candles SELECT %s, 'A/B', '1m', to_timestamp(%s), 1, 1, 1, 1, 1, now(),"
                " 'r', 'ohlcv' ON CONFLICT DO NOTHING",
                [name, day_start_ms(DAY) // 1_000],
            )
        rows = psycopg.ClientCursor(conn).execute(_query(exchange, day_start_ms(DAY))).fetchall()
        assert [row[0] for row in rows] == [exchange]


@pytest.fixture(scope="module")
def shared_database(new_database: Callable[[], str]) -> str:
    return new_database()


def test_a_whole_run_writes_no_pickle_and_no_output_goes_to_dagsters_own_io_manager(
    runs: dict[str, Run],
) -> None:
    """Who can write a pickle that is read again runs code as us."""
    candles = runs["stored"].candles
    assert pickles(candles.settings.home) == []
    managers = {event["managerKey"] for event in runs["stored"].of_kind("HandledOutputEvent")}
    assert managers == {"validated_lake", "timescale"}
    job = candles.definitions.resolve_job_def(OHLCV_JOB)
    assert isinstance((candles.definitions.resources or {})["io_manager"], NoIOManager)
    unnamed = {
        output.name
        for node in job.nodes
        for output in node.definition.output_defs
        if output.io_manager_key == "io_manager" and not output.dagster_type.is_nothing
    }
    assert unnamed == CHECK_OUTPUTS  # Dagster stores none


CHECK_OUTPUTS = {
    "raw_ohlcv_ohlcv_constraints",
    "raw_ohlcv_every_request_answered",
    "validated_ohlcv_candle_schema",
    "timescale_candles_completeness",
    "timescale_candles_stored_equals_validated",
    "timescale_candles_seconds_behind_now",
}


def test_an_output_without_an_io_manager_is_refused() -> None:
    """An asset added without one must not be pickled in silence."""

    @dg.asset
    def forgotten() -> pd.DataFrame:
        return pd.DataFrame()

    result = dg.materialize(
        [forgotten], resources={"io_manager": NoIOManager()}, raise_on_error=False
    )
    assert not result.success
    assert "nothing is pickled" in str(result.failure_data_for_node("forgotten").error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_search_finds_pickles(tmp_path: Path, protocol: int) -> None:
    """Without this the test above could not fail."""
    (tmp_path / "a").write_bytes(pickle.dumps({"a": [1, None]}, protocol))
    (tmp_path / "b").write_bytes(b"no pickle.")
    assert pickles(tmp_path) == ["a"]
    assert not is_pickle(b"")
