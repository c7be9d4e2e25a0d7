"""Half-open intervals ``[start, end)`` of integer milliseconds, and sets of them.

A set of intervals is a sorted tuple of disjoint, non-touching, non-empty intervals; every function
here takes any iterable and returns such a set, so that two equal sets compare equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import index
from typing import NamedTuple, SupportsIndex


class Interval(NamedTuple):
    """``[start, end)`` in milliseconds since the epoch, UTC."""

    start: int
    end: int

    def __contains__(self, time_ms: object) -> bool:
        return isinstance(time_ms, SupportsIndex) and self.start <= index(time_ms) < self.end


Intervals = tuple[Interval, ...]


def union(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """What any of the intervals covers."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1].end:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, end))
        else:
            merged.append(Interval(start, end))
    return tuple(merged)


def subtract(wanted: Iterable[tuple[int, int]], covered: Iterable[tuple[int, int]]) -> Intervals:
    """What is wanted and not covered."""
    left: list[Interval] = []
    holes = union(covered)
    position = 0
    for start, end in union(wanted):
        while position < len(holes) and holes[position].end <= start:
            position += 1
        cursor = start
        while position < len(holes) and holes[position].start < end:
            hole = holes[position]
            if cursor < hole.start:
                left.append(Interval(cursor, hole.start))
            cursor = hole.end
            if hole.end > end:  # it may reach into the next one, too
                break
            position += 1
        if cursor < end:
            left.append(Interval(cursor, end))
    return tuple(left)


def intersect(intervals: Iterable[tuple[int, int]], bounds: tuple[int, int]) -> Intervals:
    """The part of the intervals inside one bound."""
    low, high = bounds
    return union((max(start, low), min(end, high)) for start, end in intervals)


def intersection(one: Iterable[tuple[int, int]], other: Iterable[tuple[int, int]]) -> Intervals:
    """What both cover, in time that grows with their number and not with its square."""
    wanted = union(one)
    return subtract(wanted, subtract(wanted, other))


def overlaps(
    one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, Interval]]:
    """Where two sequences meet: the positions in each, and what both intervals cover.

    Each sequence is sorted, and its intervals are disjoint and not empty; they may touch.
    """
    left = right = 0
    while left < len(one) and right < len(other):
        start = max(one[left][0], other[right][0])
        end = min(one[left][1], other[right][1])
        if start < end:
            yield left, right, Interval(start, end)
        if one[left][1] <= other[right][1]:
            left += 1
        else:
            right += 1
