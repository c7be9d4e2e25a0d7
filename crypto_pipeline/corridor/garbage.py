"""Python's cycle collector, kept from walking over pages of candles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Container objects made and not yet freed before the collector looks: some 200 pages of rows.
_THRESHOLD: Final = 200_000


def collect_rarely() -> None:
    """For the rest of this process: one that ends with its run, or its command."""
    gc.set_threshold(_THRESHOLD, *gc.get_threshold()[1:])


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let the collector run rarely, and not over what is there already.

    A page is a thousand lists, which live until they are columns: the collector ran twice a page and
    looked for cycles in them, and at times in all of Dagster, for a fifth of a backfill's CPU. Memory
    stays bounded: it still runs, and cycles are few.
    """
    before = gc.get_threshold()
    gc.freeze()
    collect_rarely()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
