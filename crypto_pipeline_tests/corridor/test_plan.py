"""What partitions of a run know of a symbol's listing, put together."""

from __future__ import annotations

from datetime import timedelta

from crypto_pipeline.core.coverage import Coverage, Series, SeriesCoverage, TradingLife
from crypto_pipeline.core.habits import Habits
from crypto_pipeline.core.holes import Hole
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.corridor.plan import before_listing, plan_requests
from crypto_pipeline_tests.core.builders import DAY

BTC = Series("BTC/USDT", "1m")
START = day_start_ms(DAY)
DAYS = [DAY + timedelta(days=number) for number in range(6)]
FIRST = START + 4 * DAY_MS
LISTED = SeriesCoverage(life=TradingLife(first=FIRST, evidence="its first candle", exact=True))


def failed(start: int, end: int) -> Hole:
    return Hole(start=start, end=end, kind="failed", first_seen=start, at=start, note="503")


def requests(coverage: dict[object, Coverage]) -> list[Interval]:
    planned = plan_requests(
        coverage,
        series=[BTC],
        habits=Habits(quiet="filled"),
        exchange_now=START + 10 * DAY_MS,
        our_now=START + 10 * DAY_MS,
        reread=0,
        resting=lambda known, now: (),
    )
    return [request.window for request in planned]


def test_days_before_a_listing_hear_of_it_with_its_evidence() -> None:
    """Also where the newest day's look showed none: its sentence is no proof."""
    none = SeriesCoverage(life=TradingLife(evidence="daily candles show no end of it"))
    before = SeriesCoverage(holes=(failed(START, START + DAY_MS),))
    coverage = {
        day: Coverage({BTC: known})
        for day, known in zip((DAYS[0], DAYS[1], DAYS[5]), (before, LISTED, none), strict=True)
    }
    assert list(before_listing(coverage, [BTC])) == [(DAYS[0], BTC, LISTED.life)]


def test_a_listing_after_candles_that_are_there_is_none() -> None:
    """One wrong answer about it, and an afternoon that failed would be called not listed yet, unasked."""
    noon = START + DAY_MS // 2
    traded = SeriesCoverage(settled=(Interval(START, noon),), holes=(failed(noon, START + DAY_MS),))
    coverage = {DAYS[0]: Coverage({BTC: traded}), DAYS[2]: Coverage({BTC: LISTED})}
    assert list(before_listing(coverage, [BTC])) == []
    assert requests(coverage)[0].start == noon
