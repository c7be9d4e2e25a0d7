"""Markets are loaded once for all runs, and again when that can tell something new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.core.coverage import Series
from crypto_pipeline.database.connection import connect
from crypto_pipeline.database.market_cache import StoredMarkets
from crypto_pipeline.errors import BadAnswer, DatabaseError, RequestRefused
from crypto_pipeline.exchanges.markets import ABSENT_AGE_MS, fingerprint
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper
from crypto_pipeline_tests.exchanges.conftest import KEYS, NOW, SYMBOLS, WINDOW, Asker

HOUR = 3_600_000


@pytest.fixture(scope="module")
def module_url(new_database: Callable[[], str]) -> str:
    return new_database()


class Runs:
    """Runs of one exchange, each with a wrapper of its own."""

    def __init__(self, asker: Asker, url: str) -> None:
        self.asker, self.url = asker, url

    def run(self, key: str, *, now: int = NOW, fetch: bool = True, **fields: Any) -> set[str]:
        """Load the markets and ask for candles; the symbols known."""
        config: ExchangeConfig = self.asker.config(key, **fields)

        async def inside() -> set[str]:
            cache = StoredMarkets(lambda: self.url, key)
            async with ExchangeWrapper(
                key=key, config=config, clock=lambda: now, markets=cache
            ) as wrapper:
                wrapper._ccxt.timeout_on_exit = 0
                await wrapper.load_markets()
                if fetch:
                    await wrapper.fetch(Series(config.symbols[0], "1m"), WINDOW)
                return set(wrapper.symbols)

        return asyncio.run(inside())

    def loads(self, key: str) -> int:
        """Requests for markets since the last call."""
        control = self.asker.simulator.control
        found = len(control.arrivals(exchange=key, endpoint="markets"))
        control.reset()
        return found


@pytest.fixture
def runs(asker: Asker, module_url: str) -> Runs:
    with connect(module_url) as conn:
        conn.execute("TRUNCATE exchange_markets")
    return Runs(asker, module_url)


@pytest.mark.parametrize("key", KEYS)
def test_runs_after_the_first_load_no_markets(runs: Runs, key: str) -> None:
    """A process a minute that loads them gets its address banned; candles come all the same."""
    runs.run(key)
    assert runs.loads(key) == 1
    for minutes in (1, 60, 24 * 60 - 1):
        assert runs.run(key, now=NOW + minutes * 60_000) == {SYMBOLS[key]}
    assert runs.loads(key) == 0


def test_markets_that_have_aged_are_loaded_again(runs: Runs) -> None:
    """A market's precision or state changes; how old it may be is configured."""
    aged = {"markets": {"max_age_hours": 2}}
    runs.run("binance", **aged)
    runs.run("binance", now=NOW + 2 * HOUR - 1, **aged)
    assert runs.loads("binance") == 1
    runs.run("binance", now=NOW + 2 * HOUR, **aged)
    assert runs.loads("binance") == 1
    runs.run("binance", now=NOW + 4 * HOUR - 1, **aged)
    assert runs.loads("binance") == 0
    runs.run("binance", now=NOW - 1, **aged)
    assert runs.loads("binance") == 1, "kept by a machine whose clock is ahead"


def test_a_symbol_configured_since_is_looked_for_once(runs: Runs) -> None:
    """The next run after a change of pipeline.yaml collects it, not that of the next day."""
    runs.run("binance")
    assert runs.loads("binance") == 1
    both = {"symbols": ["ETH/USDT", "BTC/USDT"]}
    assert runs.run("binance", now=NOW + 60_000, **both) == {"BTC/USDT", "ETH/USDT"}
    assert runs.loads("binance") == 1
    runs.run("binance", now=NOW + 120_000, **both)
    runs.run("binance", now=NOW + 180_000)
    assert runs.loads("binance") == 0


@pytest.mark.parametrize("symbols", [["BTC/USDT", "NEW/USDT"], ["NEW/USDT"]])
def test_a_symbol_the_exchange_does_not_list_is_not_looked_for_every_minute(
    runs: Runs, symbols: list[str]
) -> None:
    """A delisted symbol, alone too, must not bring the load of each minute back."""
    for minute in range(10):
        runs.run("binance", now=NOW + minute * 60_000, fetch=False, symbols=symbols)
    with pytest.raises(RequestRefused, match="lists no market NEW/USDT"):
        runs.run("binance", now=NOW, symbols=["NEW/USDT", *symbols[:-1]])
    assert runs.loads("binance") == 1
    runs.run("binance", now=NOW + ABSENT_AGE_MS, fetch=False, symbols=symbols)
    assert runs.loads("binance") == 1, "it may be listed by now"


def test_another_ccxt_section_has_markets_of_its_own(runs: Runs) -> None:
    """A sandbox, another host or market type lists other markets; a proxy or a key does not."""
    plain = runs.asker.config("binance")
    others: list[dict[str, Any]] = [
        {"urls": {"api": {"public": "http://127.0.0.1:1/elsewhere"}}},
        {"options": {"defaultType": "swap"}},
        {"hostname": "binance.bh"},
        {"sandbox": True},
    ]
    prints = {fingerprint(runs.asker.config("binance", ccxt=other)) for other in others}
    assert len(prints) == len(others)
    assert fingerprint(plain) not in prints
    for same in ({"apiKey": "k", "secret": "s"}, {"httpProxy": "http://proxy"}):
        assert fingerprint(runs.asker.config("binance", ccxt=same)) == fingerprint(plain)
    runs.run("binance")
    runs.run("binance", ccxt={"options": {"defaultType": "spot", "warnOnNothing": True}})
    assert runs.loads("binance") == 2


def test_nothing_is_kept_of_an_exchange_that_lists_nothing(runs: Runs) -> None:
    """A maintenance answer must not make every symbol unlisted for a day."""
    control = runs.asker.simulator.control
    control.add_fault(act="body", body='{"symbols": []}', endpoint="markets", exchange="binance")
    with pytest.raises(BadAnswer, match="lists none at all"):
        runs.run("binance")
    control.reset()
    runs.run("binance")
    assert runs.loads("binance") == 1


def test_what_is_kept_holds_the_configured_symbols_only(runs: Runs) -> None:
    """An exchange lists thousands; a row of megabytes would be read every minute."""
    runs.run("binance")
    with connect(runs.url) as conn:
        found = conn.execute("SELECT markets FROM exchange_markets").fetchone()
    assert found is not None
    assert [market["symbol"] for market in orjson.loads(found[0])["markets"]] == ["BTC/USDT"]


def test_without_the_database_no_markets_are_loaded(runs: Runs) -> None:
    """Failing open would load them every minute for as long as the database is away."""
    runs.url = "postgresql://nobody@127.0.0.1:1/nothing"
    with pytest.raises(DatabaseError):
        runs.run("binance")
    assert runs.loads("binance") == 0
