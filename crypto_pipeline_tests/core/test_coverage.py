"""Coverage against a model that remembers every minute by itself."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.core.coverage import Coverage, Failure, Series, SeriesCoverage
from crypto_pipeline.core.intervals import Interval

SERIES = Series("BTC/USDT", "1m")


@dataclass(frozen=True)
class Call:
    """A request for [start, end) at a time, answered up to an instant or failed."""

    start: int
    end: int
    at: int
    settled_before: int | None


calls = st.lists(
    st.builds(
        lambda start, length, at, before: Call(start, start + length, at, before),
        st.integers(0, 20),
        st.integers(1, 10),
        st.integers(0, 1_000),
        st.none() | st.integers(0, 30),
    ),
    max_size=12,
)


def after(history: list[Call]) -> SeriesCoverage:
    coverage = SeriesCoverage()
    for call in history:
        window = Interval(call.start, call.end)
        if call.settled_before is None:
            coverage = coverage.failed(window, at=call.at, error=f"error {call.at}")
        else:
            coverage = coverage.answered(window, settled_before=call.settled_before, at=call.at)
    return coverage


@given(calls)
def test_coverage_of_any_history(history: list[Call]) -> None:
    """Settled never shrinks; an answer clears failures; attempts grow with every failure."""
    settled: set[int] = set()
    failed: dict[int, tuple[int, int]] = {}
    for call in history:
        window = range(call.start, call.end)
        if call.settled_before is None:
            attempts = 1 + max((failed[m][1] for m in window if m in failed), default=0)
            failed |= {m: (call.at, attempts) for m in window if m not in settled}
        else:
            settled |= {m for m in window if m < call.settled_before}
            failed = {m: failure for m, failure in failed.items() if m not in window}
    coverage = after(history)

    assert {m for interval in coverage.settled for m in range(*interval)} == settled
    minutes = [m for failure in coverage.failures for m in range(*failure.interval)]
    assert minutes == sorted(failed)
    assert {
        m: (failure.at, failure.attempts)
        for failure in coverage.failures
        for m in range(*failure.interval)
    } == failed
    answered = [call.at for call in history if call.settled_before is not None]
    assert coverage.answered_at == max(answered, default=None)


@given(st.dictionaries(st.builds(Series, st.text(), st.sampled_from(["1m", "1h"])), calls))
@settings(max_examples=25)
def test_json_there_and_back(histories: dict[Series, list[Call]]) -> None:
    """The file keeps everything, and equal coverage is equal text whatever order it grew in."""
    coverage = Coverage({series: after(history) for series, history in histories.items()})
    other = Coverage(dict(reversed(coverage.by_series.items())))
    assert Coverage.from_json(coverage.to_json()) == coverage
    assert coverage.to_json() == other.to_json()


def test_a_failed_reread_leaves_what_was_settled() -> None:
    """A tick that fails over 58–61 after 0–60 was settled is about 60–61 only."""
    coverage = SeriesCoverage().answered(Interval(0, 60), settled_before=60, at=1)
    coverage = coverage.failed(Interval(58, 61), at=2, error="HTTP 503")
    assert coverage.settled == (Interval(0, 60),)
    assert coverage.failures == (Failure(start=60, end=61, at=2, error="HTTP 503"),)


def test_an_answer_without_anything_final_settles_nothing() -> None:
    """Only the forming candle was asked for: it was answered, and will be asked for again."""
    coverage = SeriesCoverage().answered(Interval(60, 61), settled_before=60, at=5)
    assert coverage == SeriesCoverage(answered_at=5)


def test_an_exchange_s_essay_is_cut() -> None:
    """An HTML page as an error message does not fill the file."""
    (failure,) = SeriesCoverage().failed(Interval(0, 1), at=0, error="x" * 10_000).failures
    assert len(failure.error) == 500


def test_a_series_never_asked_for_is_empty() -> None:
    """Absent and empty read the same; updating one series leaves the others."""
    one = Coverage().updated(SERIES, after([Call(0, 5, 1, 5)]))
    both = one.updated(Series("ETH/USDT", "1m"), SeriesCoverage())
    assert Coverage().of(SERIES) == SeriesCoverage()
    assert both.of(SERIES) == one.of(SERIES)
