"""Faults: which requests they hit, and what they do to the answer.

A fault matches on exchange, endpoint and symbol, then on the number of the matching request and on
chance; it acts in one way. Several faults may hit one request: latencies add up, and each changes
what the one before it left.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Act = Literal[
    "delay",  # only the latency
    "status",  # `status`, `headers`, `body`
    "body",  # HTTP 200 with `body` (see BODIES for the usual ones), `content_type`
    "no_content",  # HTTP 204
    "cut_json",  # the true answer, cut in half, as if it were whole
    "cut_gzip",  # the true answer as a gzip stream that ends half way
    "drop",  # the connection closes before the answer
    "drop_mid_body",  # the connection closes half way through the body
    "wrong_pair",  # kraken: the true rows under another pair's name (`pair`)
    "bad_candles",  # true rows spoiled in one way (`spoil`)
    "large",  # JSON of `megabytes`; without saying how much it is where `encoding` is "chunked"
    "many_rows",  # the true rows again and again, `rows` of them
    "many_values",  # JSON of `megabytes` that is 24 times as large once decoded
    "deep",  # JSON lists in lists, of `megabytes`
    "bomb",  # JSON of `megabytes`, packed by `encoding` to a thousandth of it
    "endless",  # JSON that never ends, as fast as it is read
    "trickle",  # JSON that never ends, 50 bytes a second
    "many_headers",  # `rows` header fields of 1 KB before the true answer
    "many_interims",  # `rows` times "100 Continue" before the true answer
]
#: Acts of :mod:`crypto_pipeline.simulator.hostile`.
HOSTILE = (
    "large", "many_rows", "many_values", "deep", "bomb", "endless", "trickle", "many_headers",
    "many_interims",
)  # fmt: skip
Spoil = Literal[
    "high_below_low",
    "negative_price",
    "zero_price",
    "nan",  # the JSON literal NaN, which is not JSON
    "nan_text",  # "NaN"
    "null",  # the close is null
    "null_row",  # every column is null
    "empty_row",  # []
    "text",  # the close is a word
    "off_grid",  # opens 7 seconds late
    "duplicate",  # the row twice
    "conflicting_duplicate",  # the row twice, the second with another close
    "future",  # opens a day after the newest row of the answer
    "outside",  # opens a day before the oldest row of the answer
    "missing",  # the row is left out
    "revised",  # other values: what a late correction looks like before it is made
]

BODIES = {
    "html": "<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
    "null": "null",
    "empty": "",
    "object": "{}",
    "list": "[]",
}

_ids = itertools.count(1)


class Fault(BaseModel):
    """One fault. Without conditions it hits every request.

    Attributes:
        exchange, endpoint, symbol: None matches all; endpoints are ``candles``, ``trades``,
            ``markets``, ``currencies``, ``time``, ``ping``, ``other``.
        params: request parameters that must have these values.
        nth: only the n-th matching request (from 1); ``every``: each n-th.
        probability: chance to act on a matching request, from a generator seeded with ``seed``.
        count: acts that are left; None is no limit.
        latency: seconds before anything else happens.
        body: for "status" and "body": a name from `BODIES` or the text itself.
        megabytes, rows, encoding: sizes and packing of hostile answers.
        open_times: for "bad_candles": which rows, milliseconds UTC; None is the middle row.
    """

    model_config = ConfigDict(extra="forbid")

    act: Act
    id: int = Field(default_factory=lambda: next(_ids))
    exchange: str | None = None
    endpoint: str | None = None
    symbol: str | None = None
    params: dict[str, str] = {}
    nth: int | None = Field(default=None, ge=1)
    every: int | None = Field(default=None, ge=1)
    probability: Annotated[float, Field(ge=0, le=1)] = 1
    seed: int = 0
    count: int | None = Field(default=None, ge=0)
    latency: float = Field(default=0, ge=0)
    status: int | None = Field(default=None, ge=100, le=599)
    headers: dict[str, str] = {}
    body: str = ""
    content_type: str = "text/html"
    pair: str = "XXBTZEUR"
    spoil: Spoil | None = None
    open_times: list[int] | None = None
    megabytes: int = Field(default=100, ge=1, le=2_000)
    rows: int = Field(default=100_000, ge=1, le=20_000_000)
    encoding: Literal["", "chunked", "gzip", "deflate", "raw deflate"] = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.act == "status") != (self.status is not None):
            raise ValueError("status goes with act 'status', and only with it")
        if (self.act == "bad_candles") != (self.spoil is not None):
            raise ValueError("spoil goes with act 'bad_candles', and only with it")
        if (self.act == "bomb") != (self.encoding not in ("", "chunked")):
            raise ValueError("an encoding that packs goes with act 'bomb', and only with it")
        return self

    @property
    def text(self) -> str:
        """The body to send."""
        return BODIES.get(self.body, self.body)


@dataclass(slots=True)
class _Armed:
    fault: Fault
    chance: random.Random
    seen: int = 0
    acted: int = 0

    def hits(
        self, exchange: str, endpoint: str, symbol: str | None, params: dict[str, str]
    ) -> bool:
        if not self._matches(exchange, endpoint, symbol, params):
            return False
        self.seen += 1
        if not self._due():
            return False
        self.acted += 1
        return True

    def _matches(
        self, exchange: str, endpoint: str, symbol: str | None, params: dict[str, str]
    ) -> bool:
        fault = self.fault
        return (
            fault.exchange in (None, exchange)
            and fault.endpoint in (None, endpoint)
            and fault.symbol in (None, symbol)
            and all(params.get(name) == value for name, value in fault.params.items())
        )

    def _due(self) -> bool:
        fault = self.fault
        return (
            fault.nth in (None, self.seen)
            and (fault.every is None or self.seen % fault.every == 0)
            and (fault.count is None or self.acted < fault.count)
            and (fault.probability >= 1 or self.chance.random() < fault.probability)
        )


@dataclass(slots=True)
class FaultBook:
    """The faults in force, in the order they were added."""

    _armed: list[_Armed] = field(default_factory=list)

    def add(self, fault: Fault) -> int:
        """Put a fault in force; its id."""
        chance = random.Random(fault.seed)  # noqa: S311 (chance, not secrecy)
        self._armed.append(_Armed(fault, chance))
        return fault.id

    def clear(self, fault_id: int | None = None) -> None:
        """Lift one fault, or all."""
        self._armed = [
            armed for armed in self._armed if fault_id is not None and armed.fault.id != fault_id
        ]

    def listed(self) -> list[dict[str, object]]:
        """Each fault with how many requests matched (``seen``) and were hit (``acted``)."""
        return [
            {**armed.fault.model_dump(mode="json"), "seen": armed.seen, "acted": armed.acted}
            for armed in self._armed
        ]

    def hitting(
        self, exchange: str, endpoint: str, symbol: str | None, params: dict[str, str]
    ) -> list[Fault]:
        """The faults that act on this request; counts it."""
        if not self._armed:
            return []
        return [
            armed.fault for armed in self._armed if armed.hits(exchange, endpoint, symbol, params)
        ]
