"""What is known of exchanges, and what is assumed of others."""

import ccxt
import pytest
from pydantic import ValidationError

from crypto_pipeline.core.habits import HABITS, SAFE, Habits, habits_of


def test_an_unknown_exchange_is_treated_with_care() -> None:
    """Small pages, no ``until``, and rows nobody asked for expected."""
    assert habits_of("never-heard-of") == SAFE
    assert SAFE.page <= min(habits.page for habits in HABITS.values())
    assert SAFE.until is None
    assert SAFE.extra_rows


@pytest.mark.parametrize("ccxt_id", HABITS)
def test_the_table_names_exchanges_of_ccxt(ccxt_id: str) -> None:
    """A misspelt name would silently fall back to safe habits."""
    assert ccxt_id in ccxt.exchanges


def test_kraken_serves_the_newest_720_only() -> None:
    """An older ``since`` silently gives the newest: it must not be asked for."""
    assert habits_of("kraken").history == habits_of("kraken").page == 720


@pytest.mark.parametrize(("ccxt_id", "page"), [("mexc", 500), ("bitget", 200), ("okx", 300)])
def test_pages_that_ccxt_has_wrong_or_skips_rows_beyond(ccxt_id: str, page: int) -> None:
    """ccxt says 1,000 for mexc; bitget skips 800 rows of a page of 1,000."""
    assert habits_of(ccxt_id).page == page


#: shared/facts/exchanges.md: page, ms a request (the corrected one where it names one), ``until``,
#: empty minutes ("flat" is filled; where nobody measured: unknown), newest candles served.
FACTS = {
    "binance": (1_000, 20, "inclusive", "filled", None),
    "kraken": (720, 1_200, None, "filled", 720),
    "coinbase": (300, 102, "inclusive", "omitted", None),
    "coinbaseexchange": (300, 100, "inclusive", "omitted", None),
    "okx": (300, 110, "exclusive", "filled", None),
    "bybit": (1_000, 100, "inclusive", "filled", None),
    "kucoin": (1_500, 22.5, None, "omitted", None),
    "gate": (1_000, 50, "inclusive", "unknown", 10_000),
    "bitfinex": (10_000, 2_000, "inclusive", "omitted", None),
    "bitstamp": (1_000, 75, "inclusive", "filled", None),
    "gemini": (1_000, 500, None, "omitted", 1_000),
    "mexc": (500, 50, "inclusive", "unknown", None),
    "htx": (1_000, 100, "inclusive", "filled", None),
    "cryptocom": (300, 10, None, "unknown", None),
    "bitget": (200, 50, "inclusive", "unknown", None),
    "hyperliquid": (5_000, 1_000, "inclusive", "unknown", 5_000),
}


@pytest.mark.parametrize("ccxt_id", FACTS)
def test_the_table_says_what_was_measured(ccxt_id: str) -> None:
    """All 16 exchanges of the facts: a page too long loses rows, a cost too low gets an IP banned."""
    habits = HABITS[ccxt_id]
    found = (habits.page, habits.cost_ms, habits.until, habits.quiet, habits.history)
    assert found == FACTS[ccxt_id]


def test_nothing_an_unknown_exchange_leaves_out_is_taken_for_proof() -> None:
    """ "No trades" is proven only where it is known that quiet minutes are left out."""
    assert SAFE.quiet == Habits().quiet == "unknown"


def test_trades_are_a_way_back_only_where_candles_are_not() -> None:
    """Building candles from trades costs a thousand times more: only for what is out of reach."""
    assert [name for name, habits in HABITS.items() if habits.trades] == ["kraken"]
    assert all(habits.history is not None for habits in HABITS.values() if habits.trades)


@pytest.mark.parametrize(
    "mistake", [{"page": 0}, {"history": 0}, {"settle_ms": -1}, {"pages": 5}, {"cost_ms": 0}]
)
def test_a_mistake_is_refused(mistake: dict[str, int]) -> None:
    """pipeline.yaml overrides habits: a typo must not pass for one."""
    with pytest.raises(ValidationError):
        Habits(**mistake)
