"""What every wire format offers the server, and what it may ask of the exchange behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from crypto_pipeline.simulator.pages import Pager
from crypto_pipeline.simulator.truth import Series
from crypto_pipeline.simulator.truth.candles import Candles, Ints
from crypto_pipeline.simulator.wire import Answer, Buffer


@dataclass(frozen=True, slots=True)
class Route:
    """What a request asks for.

    Attributes:
        endpoint: ``candles``, ``trades``, ``markets``, ``currencies``, ``time``, ``ping`` or
            ``other``: the names that faults and counters use.
        symbol: ccxt's unified symbol, or None where there is none (or an unknown one).
    """

    endpoint: str
    symbol: str | None = None


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Where a candle row keeps what; times are in units of ``time_unit_ms``."""

    time: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    time_unit_ms: int
    text: bool


class Venue(Protocol):
    """The exchange behind a wire format."""

    @property
    def history_limit(self) -> int:
        """Newest candles the API reaches; 0: all."""

    @property
    def page_limit(self) -> int:
        """Most candles in an answer."""

    def now_ms(self) -> float:
        """The exchange's clock, Unix milliseconds."""

    def series(self, symbol: str) -> Series:
        """The truth about a symbol."""

    def pager(self, symbol: str, timeframe_ms: int) -> Pager:
        """Rendered final candles."""

    def is_listed(self, symbol: str) -> bool:
        """Whether the symbol trades now."""


class Dialect(ABC):
    """A wire format."""

    layout: ClassVar[RowLayout]
    newest_first: ClassVar[bool] = False
    default_history_limit: ClassVar[int] = 0
    default_page_limit: ClassVar[int]

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = tuple(symbols)
        self.symbol_of = {name: symbol for symbol in self.symbols for name in self.names(symbol)}

    @abstractmethod
    def names(self, symbol: str) -> tuple[str, ...]:
        """The names requests may use for a symbol; the first is its market id."""

    @abstractmethod
    def route(self, path: str, params: Mapping[str, str]) -> Route:
        """What a request asks for; ``path`` has no leading slash."""

    @abstractmethod
    def answer(self, path: str, params: Mapping[str, str], route: Route, venue: Venue) -> Answer:
        """The answer of a healthy exchange."""

    @abstractmethod
    def render(self, series: Series, candles: Candles, timeframe_ms: int) -> tuple[bytes, Ints]:
        """Candle rows, each ending in a comma, and where each starts."""

    @abstractmethod
    def too_many(self, *, limit: int, retry_after: int, banned_until_ms: float | None) -> Answer:
        """The answer to a client over its budget, or banned (``banned_until_ms`` is not None)."""

    @abstractmethod
    def rows_in(self, content: Any) -> list[list[Any]] | None:
        """The candle rows inside a decoded answer, to be changed in place; None without any."""

    def weight(self, endpoint: str) -> int:
        """What a request costs of the budget."""
        del endpoint
        return 1

    def usage_headers(self, used: int) -> dict[str, str]:
        """Headers that tell the client how much of the budget it used this minute."""
        del used
        return {}

    def forming_row(self, venue: Venue, symbol: str, timeframe_ms: int) -> tuple[int, bytes] | None:
        """Open time and row of the candle that is open now."""
        series = venue.series(symbol)
        candles = series.forming(timeframe_ms, venue.now_ms())
        if not len(candles):
            return None
        return int(candles.time[0]), self.render(series, candles, timeframe_ms)[0][:-1]


def last_closed_end(now_ms: float, timeframe_ms: int) -> int:
    """Candles that open before this are over."""
    return int(now_ms) // timeframe_ms * timeframe_ms


def bracketed(head: bytes, runs: list[Buffer], tail: bytes) -> list[Buffer]:
    """A body in pieces: runs of rows, with commas between them."""
    pieces: list[Buffer] = [head]
    for run in runs:
        pieces += (run, b",")
    pieces[max(1, len(pieces) - 1) :] = [tail]
    return pieces


def split(symbol: str) -> tuple[str, str]:
    """Base and quote currency."""
    base, _, quote = symbol.partition("/")
    return base, quote
