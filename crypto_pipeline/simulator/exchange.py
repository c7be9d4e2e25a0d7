"""One simulated exchange: its wire format, truth, clock, budget and limits put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from crypto_pipeline.simulator.budget import Budget
from crypto_pipeline.simulator.clock import Clock
from crypto_pipeline.simulator.config import ExchangeConfig
from crypto_pipeline.simulator.dialects import Dialect
from crypto_pipeline.simulator.pages import BlockCache, Pager
from crypto_pipeline.simulator.truth import Series, Truth


@dataclass(slots=True)
class SimulatedExchange:
    """What a dialect sees as its `Venue`, and the server as a mount point."""

    key: str
    config: ExchangeConfig
    dialect: Dialect
    truth: Truth
    clock: Clock
    cache: BlockCache
    clock_offset: float = field(init=False)
    latency: float = field(init=False)
    budget: Budget = field(init=False)
    _pagers: dict[tuple[str, int], Pager] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Back to what the configuration says."""
        self.clock_offset = self.config.clock_offset
        self.latency = self.config.latency
        self.budget = Budget(self.config.budget)

    @property
    def history_limit(self) -> int:
        """Newest candles the API reaches; 0: all."""
        limit = self.config.history_limit
        return self.dialect.default_history_limit if limit is None else limit

    @property
    def page_limit(self) -> int:
        """Most candles in an answer."""
        return self.config.page_limit or self.dialect.default_page_limit

    def now_ms(self) -> float:
        """The exchange's clock, Unix milliseconds."""
        return self.clock.now_ms() + self.clock_offset * 1_000

    def series(self, symbol: str) -> Series:
        """The truth about a symbol."""
        return self.truth.series(self.key, symbol)

    def pager(self, symbol: str, timeframe_ms: int) -> Pager:
        """Rendered final candles."""
        pager = self._pagers.get((symbol, timeframe_ms))
        if pager is None:
            pager = self._pagers[symbol, timeframe_ms] = Pager(
                self.cache,
                self.series(symbol),
                timeframe_ms,
                self.dialect.render,
                newest_first=self.dialect.newest_first,
            )
        return pager

    def is_listed(self, symbol: str) -> bool:
        """Whether the symbol trades now, by its configured listing (not by its recorded data)."""
        config = self.config.symbols[symbol]
        now = self.now_ms()
        return config.listed <= now and (config.delisted is None or now < config.delisted)
