"""Which partition each row of an answer belongs to, and which rows nobody asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from crypto_pipeline.core.answers import Answer
from crypto_pipeline.core.rules import FUTURE_TOLERANCE_MS, NO_TIME
from crypto_pipeline.core.timeframes import DAY_MS

#: Day number of a row that is left out.
UNASKED = -1


def home_days(
    open_time: npt.NDArray[np.int64],
    answers: Sequence[Answer],
    *,
    extra_rows: bool,
) -> npt.NDArray[np.int64]:
    """For each row the UTC day (days since the epoch) of its partition, or ``UNASKED``.

    Rows inside the window go to the day they open on. Of the others, real candles are left out
    where the exchange is known to send more than it was asked for (``extra_rows``): they are asked
    for in their own window. Anything else (no time, a time in the future, a candle this exchange
    should not have sent) stays with the window's first day, where the rules refuse it by name.

    Args:
        open_time: of all rows of the answers, one answer after the other, ms.
        answers: the answers.
        extra_rows: the exchange's habit.
    """
    sizes = [answer.size for answer in answers]

    def each(values: list[int]) -> npt.NDArray[np.int64]:
        return np.repeat(np.array(values, np.int64), sizes)

    start = each([answer.window.start for answer in answers])
    inside = (open_time >= start) & (open_time < each([a.window.end for a in answers]))
    days: npt.NDArray[np.int64] = np.where(inside, open_time, start) // DAY_MS
    if extra_rows:
        now = each([answer.exchange_now for answer in answers])
        candle = (open_time != NO_TIME) & (open_time <= now + FUTURE_TOLERANCE_MS)
        days[~inside & candle] = UNASKED
    return days
