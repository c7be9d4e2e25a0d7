"""Places in a request budget, taken in turn."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute(TAKE_REQUEST_PLACE)


TAKE_REQUEST_PLACE = """
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
