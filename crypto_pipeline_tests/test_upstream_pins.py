"""What we lean on in other people's code without their promise. A failure here: upstream changed.

Not tests of ours: each says what our code does because of it, and so what to look at when a version
moves.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of decorated functions.

import asyncio
import warnings
from collections.abc import Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import aiohttp
import ccxt
import ccxt.async_support
import dagster as dg
import orjson
import pytest
from aiohttp import web
from sqlalchemy import make_url

from crypto_pipeline_tests.exchanges.canned import always, serving

# --- ccxt ----------------------------------------------------------------------------------------

SINCE: Final = 1_710_506_040_000
ROW: Final = [SINCE, "1", "2", "0.5", "1.5", "10", SINCE + 59_999, "0", 1, "0", "0", "0"]
MARKET: Final = {
    "id": "BTCUSDT", "symbol": "BTC/USDT", "base": "BTC", "quote": "USDT", "baseId": "BTC",
    "quoteId": "USDT", "type": "spot", "spot": True, "swap": False, "future": False,
    "option": False, "contract": False, "linear": None, "inverse": None, "active": True,
    "precision": {}, "limits": {}, "info": {},
}  # fmt: skip

Call = Callable[[Any], Awaitable[Any]]


def asked(
    handler: Callable[[web.Request], web.Response],
    call: Call,
    *,
    kind: type | None = None,
    **settings: Any,
) -> Any:
    """Run a call on plain ccxt's binance (or a subclass), all of whose URLs are a local server."""

    async def run() -> Any:
        async with serving(handler) as url:
            exchange = (kind or ccxt.async_support.binance)({"enableRateLimit": False, **settings})
            exchange.timeout_on_exit = 0
            exchange.urls["api"] = dict.fromkeys(exchange.urls["api"], url)
            exchange.set_markets([MARKET])
            try:
                return await call(exchange)
            finally:
                await exchange.close()

    return asyncio.run(run())


async def candles(exchange: Any) -> Any:
    return await exchange.fetch_ohlcv("BTC/USDT", "1m", since=SINCE, limit=1)


def test_ccxt_is_the_version_that_was_measured() -> None:
    """Everything below, core.habits and exchanges.failures were measured with it."""
    assert ccxt.__version__ == ccxt.async_support.__version__ == "4.5.90"


@pytest.mark.parametrize("status", [200, 523, 524, 527, 529])
@pytest.mark.parametrize("body", [b"<html></html>", b'[["17', b"null", b"", b"{}"])
def test_plain_ccxt_takes_soft_failures_for_no_candles(status: int, body: bytes) -> None:
    """Why exchanges.strict exists. If this fails, ccxt has become stricter: good news."""

    def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, status=status, content_type="text/html")

    assert asked(handler, candles) == []


def test_plain_ccxt_sorts_and_cuts_rows() -> None:
    """Why exchanges.strict overrides ``parse_ohlcvs``: what it drops nobody could store or refuse."""
    rows = [[SINCE + shift, *ROW[1:]] for shift in (60_000, 0, -60_000)]
    assert [row[0] for row in asked(always(rows), candles)] == [SINCE]


def test_handle_errors_is_called_for_every_answer() -> None:
    """With status, headers, body and the decoded body (None for what is no JSON object or array)."""
    seen: list[tuple[int, str, Any]] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        def handle_errors(self, *arguments: Any) -> Any:
            code, _, _, _, headers, body, response, *_ = arguments
            assert len(arguments) == 9
            assert isinstance(headers, dict)
            assert any(name.lower() == "date" for name in headers)
            seen.append((code, body, response))
            return super().handle_errors(*arguments)

    for body in (b"[]", b"null", b"<html>", b"", b'"text"', b"[NaN"):
        asked(always(body), candles, kind=Noting)
    assert seen == [
        (200, "[]", []), (200, "null", None), (200, "<html>", None), (200, "", None),
        (200, '"text"', None), (200, "[NaN", None),
    ]  # fmt: skip


def test_parse_ohlcvs_gets_the_list_of_the_decoded_body_itself() -> None:
    """The very object: exchanges.strict tells by it that the rows are the answer's, no default."""
    taken: dict[str, Any] = {}

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        def handle_errors(self, *arguments: Any) -> Any:
            taken["body"] = arguments[6]
            return super().handle_errors(*arguments)

        def parse_ohlcvs(self, ohlcvs: Any, *arguments: Any) -> Any:
            taken["rows"] = ohlcvs
            return super().parse_ohlcvs(ohlcvs, *arguments)

    asked(always([ROW]), candles, kind=Noting)
    assert taken["rows"] is taken["body"]


def test_all_requests_go_through_fetch_with_the_url_first() -> None:
    """exchanges.strict counts and times requests there."""
    urls: list[str] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        async def fetch(self, url: str, *arguments: Any) -> Any:
            urls.append(url)
            return await super().fetch(url, *arguments)

    asked(always([ROW]), candles, kind=Noting)
    assert len(urls) == 1
    assert "klines" in urls[0]


def test_bodies_are_decoded_by_orjson_where_it_is_installed() -> None:
    """A page of 1,000 candles in 0.3 ms instead of 2; exchanges.strict calls it by itself."""
    assert ccxt.async_support.binance.on_json_response is orjson.loads


def test_a_bare_nan_makes_plain_ccxt_drop_the_page() -> None:
    """Why exchanges.strict decodes with the standard library where orjson refuses NaN."""
    body = b'[[1710506040000,"1","2","0.5",NaN,"10"]]'
    assert asked(always(body), candles) == []


def test_markets_are_loaded_once_whoever_asks() -> None:
    """Concurrent callers wait for the same request; markets that are there are not asked for."""
    requests: list[str] = []

    def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.json_response({"symbols": []})

    async def load(exchange: Any) -> None:
        exchange.markets = exchange.markets_by_id = None
        await asyncio.gather(*(exchange.load_markets() for _ in range(5)))
        exchange.set_markets([MARKET])
        await exchange.load_markets()
        await exchange.load_markets()

    asked(
        handler, load, has={"fetchCurrencies": False},
        options={"fetchMarkets": {"types": ["spot"]}},
    )  # fmt: skip
    assert len(requests) == 1


def test_without_currencies_markets_cost_one_request_less() -> None:
    """``has.fetchCurrencies`` False in our constructor arguments saves it on kraken."""
    requests: dict[object, int] = {}

    async def load(exchange: Any) -> None:
        exchange.markets = exchange.markets_by_id = None
        await exchange.load_markets()

    for has in (True, False):
        requests[has] = 0

        def handler(request: web.Request, has: bool = has) -> web.Response:
            requests[has] += 1
            return web.json_response({"error": [], "result": {}})

        asked(handler, load, kind=ccxt.async_support.kraken, has={"fetchCurrencies": has})
    assert requests == {True: 2, False: 1}


@pytest.mark.parametrize("limited", [True, False])
def test_every_request_is_throttled_unless_the_rate_limit_is_off(limited: bool) -> None:
    """``enableRateLimit: false`` in pipeline.yaml switches ccxt's limiter off, too."""
    costs: list[float] = []

    class Noting(ccxt.async_support.binance):  # type: ignore[misc]
        async def throttle(self, cost: Any = None) -> None:
            costs.append(cost)

    asked(always([ROW]), candles, kind=Noting, enableRateLimit=limited)
    assert len(costs) == (1 if limited else 0)


def test_options_reach_requests_that_nobody_passes_them_to() -> None:
    """Why config.model refuses ``maxRetriesOnFailure`` and ``paginate`` at any depth."""
    requests: list[str] = []

    def handler(request: web.Request) -> web.Response:
        requests.append(request.path)
        return web.Response(status=503)

    async def fails(exchange: Any) -> None:
        with pytest.raises(ccxt.ExchangeNotAvailable):
            await candles(exchange)

    asked(handler, fails, options={"maxRetriesOnFailure": 2})
    assert len(requests) == 3


def test_unknown_timeframes_are_sent() -> None:
    """Why exchanges.wrapper and exchanges.catalogue look into ``timeframes`` themselves."""
    asked_for: list[str] = []

    def handler(request: web.Request) -> web.Response:
        asked_for.append(request.query["interval"])
        return web.json_response([])

    async def seven_minutes(exchange: Any) -> Any:
        return await exchange.fetch_ohlcv("BTC/USDT", "7m", since=SINCE, limit=1)

    asked(handler, seven_minutes)
    assert asked_for == ["7m"]


def test_any_constructor_key_becomes_an_attribute() -> None:
    """Why exchanges.catalogue refuses keys that ccxt's class does not have."""
    exchange = ccxt.async_support.binance({"apikey": "x"})
    assert exchange.apikey == "x"
    assert exchange.apiKey != "x"


# --- aiohttp -------------------------------------------------------------------------------------


def test_aiohttp_sends_a_get_again_when_the_connection_breaks_before_the_answer() -> None:
    """One attempt of ours can be two requests, of which budgets and counts see one."""
    requests = 0

    async def run() -> None:
        async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.close()

        server = await asyncio.start_server(close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.get(f"http://127.0.0.1:{port}/")

    asyncio.run(run())
    assert requests == 2


# --- Dagster -----------------------------------------------------------------------------------


PARTITIONS = dg.MultiPartitionsDefinition(
    {
        "date": dg.DailyPartitionsDefinition("2024-01-01", end_offset=1),
        "exchange": dg.StaticPartitionsDefinition(["b", "a"]),
    }
)
RANGE = {
    "dagster/asset_partition_range_start": "2024-01-02|b",
    "dagster/asset_partition_range_end": "2024-01-04|b",
}


def preview_specs(*, blocking: bool = False) -> list[dg.AssetCheckSpec]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Specifying a partitions_def on an AssetCheckSpec"
        )
        return [
            dg.AssetCheckSpec("kept", asset="raw", partitions_def=PARTITIONS, blocking=blocking)
        ]


def _run(check: Any, tmp_path: Path) -> tuple[dg.DagsterInstance, dg.ExecuteInProcessResult]:
    """An asset and a check of it over a range of three partitions."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Parameter `backfill_policy`")

        @dg.asset(partitions_def=PARTITIONS, backfill_policy=dg.BackfillPolicy.multi_run(30))
        def raw(context: dg.AssetExecutionContext) -> None:
            for key in context.partition_keys:
                context.add_asset_metadata({"key": str(key)}, partition_key=key)

    instance = dg.DagsterInstance.ephemeral(tempdir=str(tmp_path))
    definitions = dg.Definitions(
        assets=[raw], asset_checks=[check], jobs=[dg.define_asset_job("job", selection="*")]
    )
    result = definitions.resolve_job_def("job").execute_in_process(
        instance=instance,
        tags=RANGE,
        raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    return instance, result


def _recorded(instance: dg.DagsterInstance) -> dict[str | None, str]:
    """What the UI reads: per partition the newest state of the check."""
    key = dg.AssetCheckKey(dg.AssetKey("raw"), "kept")
    infos = instance.event_log_storage.get_asset_check_partition_info([key])
    return {info.partition_key: info.latest_execution_status.value for info in infos}


def test_a_returned_check_result_leaves_the_partitions_of_a_range_planned(tmp_path: Path) -> None:
    """Why check_results.py exists. If this fails, Dagster has learned it: use AssetCheckResult."""

    @dg.multi_asset_check(specs=preview_specs())
    def check() -> Iterator[dg.AssetCheckResult]:
        yield dg.AssetCheckResult(passed=True, asset_key="raw", check_name="kept")

    instance, result = _run(check, tmp_path)
    assert result.success
    recorded = _recorded(instance)
    assert recorded.pop(None) == "SUCCEEDED"
    assert set(recorded.values()) == {"PLANNED"}


def test_yielded_evaluations_take_the_place_of_the_planned_ones(tmp_path: Path) -> None:
    """An AssetCheckEvaluation of a run and partition is matched to the row planned for it."""

    @dg.multi_asset_check(specs=(specs := preview_specs()))
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        for key in context.op_execution_context.partition_keys:
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("raw"), check_name="kept", passed=True, partition=key
            )
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    instance, result = _run(check, tmp_path)
    assert result.success
    assert _recorded(instance) == dict.fromkeys(
        ["2024-01-02|b", "2024-01-03|b", "2024-01-04|b"], "SUCCEEDED"
    )


def test_a_blocking_evaluation_of_one_partition_fails_the_step(tmp_path: Path) -> None:
    """candle_schema protects the table: nothing downstream runs."""

    @dg.multi_asset_check(specs=(specs := preview_specs(blocking=True)))
    def check(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        for key in context.op_execution_context.partition_keys:
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("raw"),
                check_name="kept",
                passed=key != "2024-01-03|b",
                partition=key,
                blocking=True,
            )
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    instance, result = _run(check, tmp_path)
    assert not result.success
    assert _recorded(instance)["2024-01-03|b"] == "FAILED"


def test_metadata_of_one_partition_of_a_range_stands_at_that_partition(tmp_path: Path) -> None:
    """add_asset_metadata(partition_key=…), also when called while an IO manager consumes."""

    @dg.multi_asset_check(specs=(specs := preview_specs()))
    def check() -> Iterator[Any]:
        yield dg.Output(None, output_name=specs[0].get_python_identifier())

    _, result = _run(check, tmp_path)
    noted = {
        event.partition: event.materialization.metadata["key"].value
        for event in result.get_asset_materialization_events()
    }
    assert noted == {key: key for key in ["2024-01-02|b", "2024-01-03|b", "2024-01-04|b"]}


def test_ranges_of_multi_partitions_follow_the_configured_order_of_exchanges() -> None:
    """A rectangle from b to a holds both, since b is configured first."""
    keys = PARTITIONS.get_partition_keys_in_range(
        dg.PartitionKeyRange("2024-01-02|b", "2024-01-03|a")
    )
    assert {str(key) for key in keys} == {
        "2024-01-02|b", "2024-01-03|b", "2024-01-02|a", "2024-01-03|a",
    }  # fmt: skip
    assert all(isinstance(key, dg.MultiPartitionKey) for key in keys)


def test_dagster_packages_are_of_one_release_and_sqlalchemy_keeps_psycopg2_the_default() -> None:
    """dagster-postgres fails on psycopg 3, which SQLAlchemy 2.1 makes the default driver."""
    assert version("dagster") == version("dagster-webserver")
    assert version("dagster-postgres").split(".")[-1] == version("dagster").split(".")[-1]
    assert make_url("postgresql://host/db").get_dialect().driver == "psycopg2"
