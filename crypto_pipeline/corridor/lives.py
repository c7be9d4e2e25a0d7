"""When symbols began and ended to trade, looked up where a run meets silence it may explain."""

from __future__ import annotations

from typing import Final

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.coverage import SeriesCoverage, TradingLife
from crypto_pipeline.core.intervals import Interval
from crypto_pipeline.core.judgement import Judgement
from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
from crypto_pipeline.errors import ExchangeError
from crypto_pipeline.exchanges.listing import trading_life
from crypto_pipeline.exchanges.wrapper import ExchangeWrapper

#: Silence of so long at the start of what is known makes us look when trading began.
_LONG_MS: Final = 3_600_000


class Lives:
    """The trading lives one run knows of, by symbol; each is looked up once."""

    def __init__(self, exchange: ExchangeWrapper) -> None:
        self._exchange = exchange
        self.by_symbol: dict[str, TradingLife] = {}

    def not_yet(self, symbol: str, window: Interval) -> bool:
        """Whether the window is known to lie before the symbol's first candle."""
        life = self.by_symbol.get(symbol)
        return life is not None and life.first is not None and window.end <= life.first

    async def look_up(self, answer: Answer, judgement: Judgement, known: SeriesCoverage) -> None:
        """Ask for the symbol's daily candles if the answer's silence may lie outside its life.

        Args:
            answer: the answer.
            judgement: what it settles.
            known: of the series, over the partitions of the run.
        """
        if not judgement.silent or answer.symbol in self.by_symbol:
            return
        today = answer.exchange_now // DAY_MS * DAY_MS
        past, life = answer.window.end <= today, known.life
        # A look that showed no listing may have met a bad answer, or come too early.
        unknown = life is None or (life.first is None and past)
        look = unknown and _may_be_before_it(answer.window, judgement, known)
        if past and self._exchange.trades_now(answer.symbol) is False:
            look = look or life is None or life.last is None
        if not look:
            return
        since = min(answer.window.start, day_start_ms(self._exchange.config.start))
        try:
            self.by_symbol[answer.symbol] = await trading_life(
                self._exchange, answer.symbol, since=since
            )
        except ExchangeError:
            return  # the hole stays unexplained, and is asked about again


def _may_be_before_it(window: Interval, judgement: Judgement, known: SeriesCoverage) -> bool:
    """Whether an answer is silent from its start on, longer than quiet minutes, before any candle."""
    silence = judgement.silent[0]
    traded_before = bool(known.settled) and known.settled[0].start < silence.start
    if silence.start != window.start or traded_before:
        return False
    again = any(hole.start < silence.end and silence.start < hole.end for hole in known.holes)
    return judgement.empty or again or silence.end - silence.start >= _LONG_MS
