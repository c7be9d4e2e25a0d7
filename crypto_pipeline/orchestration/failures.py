"""Our errors as Dagster failures: the message first, and whether a retry can help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from crypto_pipeline.errors import CryptoPipelineError


@contextmanager
def told_to_dagster() -> Iterator[None]:
    """Turn a typed error into ``dg.Failure``, which the run page shows without a stack trace."""
    try:
        yield
    except CryptoPipelineError as error:
        raise dg.Failure(
            description=str(error),
            metadata={
                "error": type(error).__name__,
                "what to do": error.hint or "see the message",
                "a rerun helps": error.rerun_helps,
            },
            allow_retries=error.rerun_helps,
        ) from error
