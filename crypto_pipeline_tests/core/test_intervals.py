"""Sets of intervals against sets of integers."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_pipeline.core.intervals import (
    Interval,
    Intervals,
    intersect,
    intersection,
    overlaps,
    subtract,
    union,
)

pair = st.tuples(st.integers(-5, 30), st.integers(-5, 30))  # empty and inverted ones, too
pairs = st.lists(pair, max_size=8)


def integers(intervals: list[tuple[int, int]] | Intervals) -> set[int]:
    return {number for start, end in intervals for number in range(start, end)}


def is_canonical(intervals: Intervals) -> bool:
    flat = [edge for interval in intervals for edge in interval]
    return flat == sorted(set(flat)) and all(isinstance(i, Interval) for i in intervals)


@given(pairs)
def test_union(intervals: list[tuple[int, int]]) -> None:
    """A union holds the integers of its parts, sorted, disjoint, not touching, none empty."""
    assert integers(union(intervals)) == integers(intervals)
    assert is_canonical(union(intervals))


@given(pairs, pairs)
def test_subtract(wanted: list[tuple[int, int]], covered: list[tuple[int, int]]) -> None:
    """A difference is the difference of the integers."""
    assert integers(subtract(wanted, covered)) == integers(wanted) - integers(covered)
    assert is_canonical(subtract(wanted, covered))


@given(pairs, pair)
def test_intersect(intervals: list[tuple[int, int]], bounds: tuple[int, int]) -> None:
    """What lies inside a bound is the intersection of the integers."""
    assert integers(intersect(intervals, bounds)) == integers(intervals) & integers([bounds])
    assert is_canonical(intersect(intervals, bounds))


@given(pairs, pairs)
def test_intersection(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    """What both cover is the intersection of the integers, whichever stands first."""
    assert integers(intersection(one, other)) == integers(one) & integers(other)
    assert is_canonical(intersection(one, other))
    assert intersection(one, other) == intersection(other, one)


touching = st.lists(st.integers(-5, 30), unique=True, max_size=12).flatmap(
    lambda edges: st.lists(st.booleans(), min_size=len(edges), max_size=len(edges)).map(
        lambda kept: [
            Interval(start, end)
            for (start, end), keep in zip(pairwise(sorted(edges)), kept, strict=False)
            if keep
        ]
    )
)


@given(touching, touching)
def test_overlaps(one: list[Interval], other: list[Interval]) -> None:
    """Every pair that shares an integer, in order, though neighbours touch; found by looking at all."""
    shared = {
        (i, j, Interval(max(a.start, b.start), min(a.end, b.end)))
        for i, a in enumerate(one)
        for j, b in enumerate(other)
        if max(a.start, b.start) < min(a.end, b.end)
    }
    assert list(overlaps(one, other)) == sorted(shared)


def test_a_hundred_thousand_intervals_take_no_square_of_time() -> None:
    """A month of alternate minutes of one series froze a run while this was done pair by pair."""
    odd = [(i, i + 1) for i in range(1, 200_000, 2)]
    even = [(i, i + 1) for i in range(0, 200_000, 2)]
    began = time.process_time()
    assert intersection(odd, even) == ()
    assert subtract([(0, 200_000)], odd) == union(even)
    assert sum(1 for _ in overlaps(odd, [(0, 200_000)])) == len(odd)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("number", [10, np.int64(10), 19, np.int32(19)])
def test_an_instant_is_found_whatever_integer_it_is(number: object) -> None:
    """numpy's integers are instants: a silent False would have put a candle outside its window."""
    assert number in Interval(10, 20)


@pytest.mark.parametrize("number", [9, 20, np.int64(20), 15.0, "15", None])
def test_the_end_and_what_is_no_integer_are_outside(number: object) -> None:
    """Half-open; a float or a text is no instant."""
    assert number not in Interval(10, 20)
