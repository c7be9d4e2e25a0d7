"""What a run says when it got nothing at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crypto_pipeline.config.model import ExchangeConfig
from crypto_pipeline.corridor.requests import FailedRequest
from crypto_pipeline.errors import CollectionFailed, ExchangeError

_NAMED = 10


def markets_unknown(config: ExchangeConfig, error: ExchangeError) -> CollectionFailed:
    """The exchange did not say which markets it has."""
    return CollectionFailed(
        f"{error.message} So none of its symbols could be asked for: {_listed(config.symbols)}.",
        hint=error.hint,
        rerun_helps=error.rerun_helps,
    )


def nothing_answered(
    exchange: str, failed: Sequence[FailedRequest], planned: int
) -> CollectionFailed:
    """Not one of the planned requests was answered; ``failed`` is not empty."""
    left_out = sum(not entry.asked for entry in failed)
    first = failed[0].error
    return CollectionFailed(
        f"{exchange}: none of {planned} requests was answered, for"
        f" {_listed(dict.fromkeys(' '.join(entry.series) for entry in failed))}"
        f" ({left_out} were not made after the first failures). The first: {first.message}",
        hint=first.hint,
        rerun_helps=any(entry.error.rerun_helps for entry in failed),
    )


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:_NAMED]) + (" …" if len(every) > _NAMED else "")
