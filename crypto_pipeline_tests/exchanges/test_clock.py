"""The exchange's clock, from ``Date`` headers cut to the second, over a network of any latency."""

from __future__ import annotations

from email.utils import format_datetime, formatdate

from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.timeframes import utc
from crypto_pipeline.exchanges.clock import ExchangeClock
from crypto_pipeline.exchanges.exchanged import Exchanged

START = 1_710_506_096_789


def exchanged(*, sent: int, there: int, back: int, offset: int) -> Exchanged:
    """A request that takes ``there`` ms to the exchange and its answer ``back`` ms home."""
    stamped = (sent + there + offset) // 1_000
    return Exchanged(
        sent_at=sent,
        received_at=sent + there + back,
        status=200,
        headers={"date": formatdate(stamped, usegmt=True)},
    )


latency = st.integers(0, 3_000)
exchanges = st.lists(st.tuples(st.integers(0, 5_000), latency, latency), min_size=1, max_size=40)


@settings(deadline=None, database=None, derandomize=True, max_examples=300)
@given(offset=st.integers(-10_000, 10_000), trips=exchanges)
def test_the_offset_never_exceeds_the_true_one(
    offset: int, trips: list[tuple[int, int, int]]
) -> None:
    """Finality rests on it: too large, and a forming candle is called final."""
    clock, now, best = ExchangeClock(), START, 10**9
    for pause, there, back in trips:
        now += pause
        clock.observe(exchanged(sent=now, there=there, back=back, offset=offset))
        now += there + back
        best = min(best, there + back)
        assert clock.offset_ms <= offset
        assert clock.offset_ms >= offset - 1_000 - best


@settings(deadline=None, database=None, derandomize=True, max_examples=100)
@given(offset=st.integers(-10_000, 10_000), there=st.integers(0, 200), back=st.integers(0, 200))
def test_the_offset_converges_with_answers_all_over_the_second(
    offset: int, there: int, back: int
) -> None:
    """Each answer narrows the bounds; a minute of them knows the clock to the way back and 50 ms."""
    clock = ExchangeClock()
    for number in range(60):
        clock.observe(exchanged(sent=START + number * 1_017, there=there, back=back, offset=offset))
    assert offset - back - 50 <= clock.offset_ms <= offset


@settings(deadline=None, database=None, derandomize=True, max_examples=100)
@given(before=st.integers(-10_000, 10_000), after=st.integers(-10_000, 10_000))
def test_a_clock_that_was_set_is_learnt_anew(before: int, after: int) -> None:
    """NTP steps ours, or the exchange's: bounds that contradict the newest answers are dropped."""
    clock = ExchangeClock()
    for number in range(120):
        offset = before if number < 60 else after
        clock.observe(exchanged(sent=START + number * 1_017, there=20, back=30, offset=offset))
    assert after - 1_100 <= clock.offset_ms <= after


def test_nothing_known_is_no_offset() -> None:
    """Before any answer, and with answers that have no readable date, our own clock stands."""
    clock = ExchangeClock()
    assert clock.offset_ms == 0
    clock.observe(Exchanged(sent_at=1, received_at=2))
    clock.observe(Exchanged(sent_at=1, received_at=2, headers={"Date": "yesterday"}))
    assert clock.offset_ms == 0


@settings(deadline=None, database=None, derandomize=True, max_examples=300)
@given(
    text=st.one_of(
        st.text(max_size=40),
        st.from_regex(
            r"[A-Z][a-z]{2}, [0-9]{1,9} [A-Z][a-z]{2} [0-9]{1,6} [0-9]{1,3}:[0-9]{2}:[0-9]{2} [-+A-Z0-9]{0,5}"
        ),
    )
)
def test_no_header_of_any_text_raises(text: str) -> None:
    """Headers come from whatever stands between us and the exchange."""
    seen = Exchanged(headers={"DATE": text, "Retry-After": text})
    assert seen.server_time is None or isinstance(seen.server_time, int)
    assert seen.retry_after is None or 0 <= seen.retry_after < float("inf")


def test_a_date_without_zone_is_utc() -> None:
    """``-0000`` says "UTC, zone unknown"; Python makes it local time."""
    time = utc(START).replace(tzinfo=None)
    seen = Exchanged(headers={"Date": format_datetime(time)})
    assert seen.server_time == START // 1_000 * 1_000


def test_retry_after_is_a_number_of_seconds() -> None:
    """Whatever case the header has; what is no finite number is no wait."""

    def waits(text: str) -> float | None:
        return Exchanged(headers={"retry-AFTER": text}).retry_after

    assert waits("30") == 30
    assert waits("0.5") == 0.5
    assert waits("-3") == 0
    assert waits("inf") is None
    assert waits("nan") is None
    assert waits("Fri, 15 Mar 2024 12:34:56 GMT") is None
