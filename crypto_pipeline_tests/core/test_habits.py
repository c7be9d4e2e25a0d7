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


@pytest.mark.parametrize("mistake", [{"page": 0}, {"history": 0}, {"settle_ms": -1}, {"pages": 5}])
def test_a_mistake_is_refused(mistake: dict[str, int]) -> None:
    """pipeline.yaml overrides habits: a typo must not pass for one."""
    with pytest.raises(ValidationError):
        Habits(**mistake)
