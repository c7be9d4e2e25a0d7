"""The model of ``pipeline.yaml``. Every key, its default and its limits are here and nowhere else."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from crypto_pipeline.core.coverage import Series
from crypto_pipeline.core.habits import Habits, habits_of
from crypto_pipeline.core.timeframes import timeframe_ms

#: An exchange's key is a partition key, a folder of the lake and a column value.
EXCHANGE_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

#: ccxt's unified symbols: ``BTC/USDT``, ``BTC/USDT:USDT``.
_SYMBOL: Final = re.compile(r"[^\s/:|]{1,40}/[^\s/:|]{1,40}(:[^\s/:|]{1,60})?")

#: ccxt settings that ``pipeline.yaml`` may not make, at any depth (ccxt reads some of them from
#: ``options``, too, and with ``default`` before them): the pipeline's promises rest on them.
_OURS: Final = {
    "maxRetriesOnFailure": "ccxt's retries bypass its rate limiter; use the key retry",
    "paginate": "ccxt's paging loses candles without a word; the pipeline pages by itself",
    "asyncio_loop": "the pipeline runs the event loop",
    "session": "the pipeline opens the session",
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_timeframe(value: str) -> str:
    timeframe_ms(value)
    return value


def _symbol(value: str) -> str:
    if not _SYMBOL.fullmatch(value) or not value.isprintable():
        raise ValueError("not a unified ccxt symbol like BTC/USDT")
    return value


def _plain_day(value: object) -> object:
    if isinstance(value, datetime) or not isinstance(value, date | str):
        raise ValueError("not a UTC day like 2024-01-01, without a time")  # noqa: TRY004 - told by pydantic
    return value


def _since_the_epoch(value: date) -> date:
    if value < date(1970, 1, 1):
        raise ValueError("before 1970-01-01, where the times of candles begin")
    return value


def _forbidden(node: object, where: str = "") -> str | None:
    """The first setting of ours in a ccxt section, and why it is ours."""
    if isinstance(node, list):
        return next(filter(None, (_forbidden(item, where) for item in node)), None)
    if not isinstance(node, dict):
        return None
    for key, value in node.items():
        name = f"{where}{key}"
        for ours, reason in _OURS.items():
            if str(key) in (ours, f"default{ours[0].upper()}{ours[1:]}") and value is not False:
                return f"{name} cannot be set: {reason}"
        below = _forbidden(value, f"{name}.")
        if below is not None:
            return below
    return None


Timeframe = Annotated[str, AfterValidator(_known_timeframe)]
Symbol = Annotated[str, AfterValidator(_symbol)]


class RetryConfig(_Model):
    """How often one request is tried again, and how long in between (exponential)."""

    attempts: int = Field(5, ge=1, le=20)
    first_wait_seconds: float = Field(1.0, ge=0)
    longest_wait_seconds: float = Field(60.0, ge=0)


class BudgetConfig(_Model):
    """The request budget that all runs on all machines share."""

    share: float = Field(0.9, gt=0, le=1, description="of the exchange's limit")
    egress: str = Field(
        "",
        max_length=100,
        description="name of the address requests come from, if there are several",
    )


class MarketsConfig(_Model):
    """The exchange's markets, which are loaded once for all runs."""

    max_age_hours: float = Field(24.0, gt=0)


class ExchangeConfig(_Model):
    """One exchange: what to collect, and how to reach it."""

    ccxt_id: str = ""
    symbols: tuple[Symbol, ...] = Field(min_length=1)
    timeframes: tuple[Timeframe, ...] = Field(("1m",), min_length=1)
    start: Annotated[date, BeforeValidator(_plain_day), AfterValidator(_since_the_epoch)]
    ccxt: dict[str, Any] = Field(default_factory=dict)
    habits: Habits = Habits()
    retry: RetryConfig = RetryConfig()
    budget: BudgetConfig = BudgetConfig()
    markets: MarketsConfig = MarketsConfig()
    concurrency: int = Field(8, ge=1, le=200, description="requests under way at once in a run")
    timeout_seconds: float = Field(15.0, ge=0.1, le=3_600, description="of one request")
    answer_megabytes: float | None = Field(
        None, ge=1, le=1_000, description="largest answer, unpacked; null: as fits what is asked"
    )

    @field_validator("symbols", "timeframes")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({item for item in value if value.count(item) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return value

    @field_validator("ccxt")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        forbidden = _forbidden(value)
        if forbidden is not None:
            raise ValueError(forbidden)
        for key in ("options", "has", "urls", "headers"):
            if key in value and not isinstance(value[key], dict):
                raise ValueError(f"{key} must be a mapping")
        if not isinstance(value.get("enableRateLimit", True), bool):
            raise ValueError("enableRateLimit must be true or false")  # noqa: TRY004 - told by pydantic
        return value

    @property
    def series(self) -> tuple[Series, ...]:
        """All configured series, symbol by symbol."""
        return tuple(Series(symbol, tf) for symbol in self.symbols for tf in self.timeframes)

    @property
    def budget_name(self) -> str:
        """The budget its requests count against: the exchange's, from one address."""
        return f"{self.ccxt_id} via {self.budget.egress}" if self.budget.egress else self.ccxt_id

    @property
    def paced(self) -> bool:
        """Whether requests keep to a budget at all."""
        return bool(self.ccxt.get("enableRateLimit", True))

    @property
    def exchange_habits(self) -> Habits:
        """The exchange's habits with this file's overrides."""
        return habits_of(self.ccxt_id).model_copy(update=self.habits.model_dump(exclude_unset=True))


class BackfillConfig(_Model):
    """Backfills launched from the UI or the command line."""

    partitions_per_run: int = Field(30, ge=1, le=1_000)


class LiveConfig(_Model):
    """The minute schedule."""

    reread: int = Field(3, ge=0, le=100, description="closed candles each tick asks for again")
    max_lag_seconds: int = Field(180, ge=1, description="beyond it the check on lag fails")


class DatabaseConfig(_Model):
    """The hypertable; changes apply to chunks made from then on."""

    chunk_days: int = Field(30, ge=1, le=365)


class RetentionConfig(_Model):
    """For how long Dagster remembers runs; the newest state of a partition it never forgets."""

    minute_runs_days: int = Field(3, ge=1, le=3_650, description="runs of the minute schedule")
    # The sensor that fills gaps counts up to ten failures, which may lie six hours apart.
    runs_days: int = Field(30, ge=3, le=3_650, description="backfills and all other runs")


class PipelineConfig(_Model):
    """The whole file."""

    exchanges: dict[str, ExchangeConfig] = Field(min_length=1)
    backfill: BackfillConfig = BackfillConfig()
    live: LiveConfig = LiveConfig()
    database: DatabaseConfig = DatabaseConfig()
    retention: RetentionConfig = RetentionConfig()

    @field_validator("exchanges", mode="before")
    @classmethod
    def _ids_default_to_keys(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {
            key: {"ccxt_id": key, **exchange} if isinstance(exchange, dict) else exchange
            for key, exchange in value.items()
        }

    @field_validator("exchanges")
    @classmethod
    def _plain_keys(cls, value: dict[str, ExchangeConfig]) -> dict[str, ExchangeConfig]:
        for key in value:
            if not EXCHANGE_KEY.fullmatch(key):
                raise ValueError(
                    f"{key!r} cannot be a partition key: use lower-case letters, digits, _ and -"
                )
        return value

    @property
    def start(self) -> date:
        """First UTC day any exchange has history for."""
        return min(exchange.start for exchange in self.exchanges.values())
