"""SQL functions and views. As for the tables, migrations create them and tests compare both."""

from __future__ import annotations

from typing import Final

#: The candles of a series and, between them, a flat one for each candle whose absence is proven
#: while trading was possible: cause ``no_trades`` or ``exchange_outage``, told in ``filled``. A
#: candle missing for any other reason may have traded and stays absent. The price is the close of
#: the last stored candle, also if that lies before ``since``; without one nothing is filled.
#:
#: One range of the primary key, one probe for the candle before it, one sort; the order of the
#: rows is the reader's. In plain SQL with a quoted body: PostgreSQL puts it into the calling
#: statement, so chunks are chosen by the arguments, and tables may be altered under it. Parameters
#: have names no column has, for in a body the column wins. A slot that was stored since the gap
#: was recorded follows its candle in the sort, and falls out by ``slot_before``. The array of slots
#: is for the planner: it takes an array to have 10 elements, a series 1,000, and with millions of
#: rows in sight a server compiles the statement (jit), which takes longer than running it.
CANDLES_FILLED: Final = """
CREATE FUNCTION public.candles_filled(
    of_exchange text, of_symbol text, of_timeframe text, since timestamptz, before timestamptz
) RETURNS TABLE (
    exchange text, symbol text, timeframe text, open_time timestamptz,
    open float8, high float8, low float8, close float8, volume float8,
    fetched_at timestamptz, run_id text, source text, filled text
)
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    WITH known AS (
        SELECT c.open_time, c.open, c.high, c.low, c.close, c.volume,
            c.fetched_at, c.run_id, c.source, NULL::text AS cause
        FROM public.candles AS c
        WHERE c.exchange = of_exchange COLLATE "C" AND c.symbol = of_symbol COLLATE "C"
            AND c.timeframe = of_timeframe COLLATE "C"
            AND c.open_time >= since AND c.open_time < before
        UNION ALL
        (SELECT c.open_time, NULL, NULL, NULL, c.close, NULL, NULL, NULL, NULL, NULL
        FROM public.candles AS c
        WHERE c.exchange = of_exchange COLLATE "C" AND c.symbol = of_symbol COLLATE "C"
            AND c.timeframe = of_timeframe COLLATE "C" AND c.open_time < since
        ORDER BY c.open_time DESC LIMIT 1)
        UNION ALL
        SELECT slot, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, g.cause
        FROM public.candle_gaps AS g
        CROSS JOIN LATERAL unnest(ARRAY(SELECT generate_series(
            g.gap_start,
            least(g.gap_end, before) - interval '1 microsecond',
            substring(of_timeframe FROM '^([1-9][0-9]{0,4})[smhd]$')::int
                * CASE right(of_timeframe, 1)
                    WHEN 's' THEN interval '1 second'
                    WHEN 'm' THEN interval '1 minute'
                    WHEN 'h' THEN interval '1 hour'
                    WHEN 'd' THEN interval '24 hours'
                END
        ))) AS slot
        WHERE g.exchange = of_exchange COLLATE "C" AND g.symbol = of_symbol COLLATE "C"
            AND g.timeframe = of_timeframe COLLATE "C"
            AND g.gap_start >= since - interval '24 hours' AND g.gap_start < before
            AND g.cause IN ('no_trades', 'exchange_outage')
            AND slot >= since
    ),
    numbered AS (
        SELECT *, count(known.close) OVER ordered AS run,
            lag(known.open_time) OVER ordered AS slot_before
        FROM known
        WINDOW ordered AS (ORDER BY known.open_time, known.cause NULLS FIRST)
    ),
    carried AS (
        SELECT *, max(numbered.close) OVER (PARTITION BY numbered.run) AS last_close FROM numbered
    )
    SELECT of_exchange, of_symbol, of_timeframe, k.open_time,
        coalesce(k.open, k.last_close), coalesce(k.high, k.last_close),
        coalesce(k.low, k.last_close), k.last_close, coalesce(k.volume, 0),
        k.fetched_at, k.run_id, k.source, k.cause
    FROM carried AS k
    WHERE k.open_time >= since AND k.last_close IS NOT NULL
        AND (k.cause IS NULL OR k.slot_before IS DISTINCT FROM k.open_time)
$$
"""

#: One place in a request budget, on the database's clock: how long to wait for it, in seconds.
#:
#: ``in_turn`` is the key of an advisory lock: PostgreSQL gives it to sessions in the order in which
#: they asked, so runs that stand there take places one after the other and get even shares however
#: much each asks for. Who has it waits here for the next place. Without a key a place is taken out of
#: turn. A pause that the exchange asked for is not waited for: ``place`` is null and ``blocked`` says
#: for how long it lasts. ``queued`` is the time spent here. All is null where there is no such budget.
TAKE_REQUEST_PLACE: Final = """
CREATE FUNCTION public.take_request_place(
    of_budget text, cost interval, ahead interval, in_turn bigint, went bigint, waited float8,
    OUT place float8, OUT blocked float8, OUT reason text, OUT queued float8
)
LANGUAGE plpgsql
AS $$
DECLARE
    free_at timestamptz;
BEGIN
    IF in_turn IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(in_turn);
    END IF;
    LOOP
        UPDATE public.request_budgets AS b
        SET requests = b.requests + went, waited_seconds = b.waited_seconds + waited,
            next_at = greatest(b.next_at, clock_timestamp()) + cost
        WHERE b.name = of_budget COLLATE "C" AND b.blocked_until <= clock_timestamp()
            AND b.next_at <= clock_timestamp() + ahead
        RETURNING b.next_at - cost INTO free_at;
        IF FOUND THEN
            place := extract(epoch FROM free_at - clock_timestamp());
            EXIT;
        END IF;
        SELECT b.next_at - ahead, b.denied,
            extract(epoch FROM greatest(b.blocked_until, clock_timestamp()) - clock_timestamp())
        INTO free_at, reason, blocked
        FROM public.request_budgets AS b WHERE b.name = of_budget COLLATE "C";
        EXIT WHEN NOT FOUND OR blocked > 0;
        PERFORM pg_sleep_until(free_at);
    END LOOP;
    queued := extract(epoch FROM clock_timestamp() - statement_timestamp());
END
$$
"""

#: The newest final candle of every series: one probe of the primary key a series. ``DISTINCT ON`` over
#: all candles reads all of them, 14 s for 20 million.
LATEST_CANDLES: Final = """
CREATE VIEW public.latest_candles AS
SELECT newest.*
FROM public.candle_series AS s
CROSS JOIN LATERAL (
    SELECT c.exchange, c.symbol, c.timeframe, c.open_time, c.open, c.high, c.low, c.close, c.volume,
        c.fetched_at, c.run_id, c.source
    FROM public.candles AS c
    WHERE c.exchange = s.exchange AND c.symbol = s.symbol AND c.timeframe = s.timeframe
    ORDER BY c.open_time DESC
    LIMIT 1
) AS newest
"""
