"""What the simulator simulates: one pydantic model, from a file, a mapping or a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from crypto_pipeline.core.timeframes import MINUTE_MS, to_ms
from crypto_pipeline.errors import ConfigError

DialectName = Literal["binance", "kraken", "coinbaseexchange"]

# ccxt class → the wire format it speaks.
DIALECT_OF_CCXT_ID: Mapping[str, DialectName] = {
    "binance": "binance",
    "binanceus": "binance",
    "kraken": "kraken",
    "coinbaseexchange": "coinbaseexchange",
}
EARLIEST_MS = to_ms(datetime(2015, 1, 1, tzinfo=UTC))


def _parse_time(value: object) -> object:
    """Dates and datetimes (naive ones are UTC) to milliseconds."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if isinstance(value, datetime):
        return to_ms(value if value.tzinfo else value.replace(tzinfo=UTC))
    return value


def _parse_symbols(value: object) -> object:
    """``["BTC/USDT"]`` is short for ``{"BTC/USDT": {}}``."""
    return {symbol: {} for symbol in value} if isinstance(value, list) else value


TimeMs = Annotated[int, BeforeValidator(_parse_time)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SymbolConfig(_Model):
    """One market. Times are whole UTC minutes; ``delisted`` is exclusive."""

    quiet_rate: float | None = Field(default=None, ge=0, le=0.98)
    listed: TimeMs = EARLIEST_MS
    delisted: TimeMs | None = None
    price_decimals: int | None = Field(default=None, ge=0, le=8)

    @model_validator(mode="after")
    def _whole_minutes(self) -> Self:
        if self.listed % MINUTE_MS or (self.delisted or 0) % MINUTE_MS:
            raise ValueError("listed and delisted must be whole minutes")
        if self.delisted is not None and self.delisted <= self.listed:
            raise ValueError("delisted must be after listed")
        return self


class BudgetConfig(_Model):
    """A budget the exchange enforces.

    Attributes:
        weight_per_minute: weight allowed in each UTC minute of real time.
        ban_after: answers of "too many requests" in a minute before the address is banned
            (binance: HTTP 418); None never bans.
        ban_seconds: length of the ban, in real seconds.
    """

    weight_per_minute: int = Field(gt=0)
    ban_after: int | None = Field(default=None, gt=0)
    ban_seconds: float = Field(default=120, gt=0)


class ClockConfig(_Model):
    """The clock all exchanges share (each adds its own ``clock_offset``).

    Attributes:
        frozen_at: the time stands still here; None lets it run.
        starts_at: the time runs on from here instead of from now.
        speed: simulated seconds per real second.
    """

    frozen_at: TimeMs | None = None
    starts_at: TimeMs | None = None
    speed: float = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if self.frozen_at is not None and (self.starts_at is not None or self.speed != 1):
            raise ValueError("a frozen clock has neither starts_at nor speed")
        return self


class ExchangeConfig(_Model):
    """One exchange.

    Attributes:
        dialect: wire format; default: the one of the ccxt class named like the key.
        symbols: ccxt's unified symbols, as a list or a mapping to `SymbolConfig`.
        replay: folder of ``<key>-<BASE>_<QUOTE>-1m-*.parquet`` files to serve instead of
            generated candles.
        quiet_rate: share of minutes without trades, where the symbol does not say.
        outages: ``[start, end)`` times in which nothing traded and no candle exists.
        history_limit: newest candles the API reaches; None: as the real exchange, 0: all.
        page_limit: most candles in an answer; None: as the real exchange.
        clock_offset: seconds this exchange's clock is ahead of the shared one.
        latency: seconds added to each answer.
        port: an own port (0: a free one), which can stop listening; None: the common one.
        budget: requests it allows before it answers "too many".
    """

    dialect: DialectName | None = None
    symbols: Annotated[dict[str, SymbolConfig], BeforeValidator(_parse_symbols)]
    replay: Path | None = None
    quiet_rate: float = Field(default=0.02, ge=0, le=0.98)
    outages: tuple[tuple[TimeMs, TimeMs], ...] = ()
    history_limit: int | None = Field(default=None, ge=0)
    page_limit: int | None = Field(default=None, gt=0)
    clock_offset: float = 0
    latency: float = Field(default=0, ge=0)
    port: int | None = Field(default=None, ge=0, le=65535)
    budget: BudgetConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.symbols:
            raise ValueError("symbols must not be empty")
        for symbol in self.symbols:
            if len([part for part in symbol.split("/") if part]) != 2 or ":" in symbol:
                raise ValueError(f"{symbol!r} is not a spot symbol such as BTC/USDT")
        for start, end in self.outages:
            if start >= end or start % MINUTE_MS or end % MINUTE_MS:
                raise ValueError("an outage is [start, end) in whole minutes, start before end")
        return self


class SimulatorConfig(_Model):
    """The whole simulator. Equal configurations give equal candles, in any process."""

    exchanges: dict[str, ExchangeConfig]
    seed: int = 0
    clock: ClockConfig = ClockConfig()
    cache_megabytes: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.exchanges:
            raise ValueError("exchanges must not be empty")
        for key in self.exchanges:
            if not key or key.startswith("_") or "/" in key:
                raise ValueError(f"{key!r} cannot be an exchange key: it is part of the URL")
            self.dialect_of(key)
        return self

    def dialect_of(self, key: str) -> DialectName:
        """The wire format an exchange speaks."""
        dialect = self.exchanges[key].dialect or DIALECT_OF_CCXT_ID.get(key)
        if dialect is None:
            raise ValueError(f"exchange {key!r} needs a dialect: {_listed(get_args(DialectName))}")
        return dialect

    @classmethod
    def parse(cls, content: object, *, origin: str) -> Self:
        """Validate plain data.

        Raises:
            ConfigError: names the origin, the key, what was found and what is allowed.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, item['loc'])) or 'top level'}: {item['msg']}"
                for item in error.errors()
            )
            raise ConfigError(f"{origin} is not a simulator configuration: {problems}") from error

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a YAML or JSON file.

        Raises:
            ConfigError: the file is missing or wrong.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"Cannot read the simulator configuration {path}: {error}") from error
        return cls.parse(content, origin=str(path))

    @classmethod
    def for_pipeline(
        cls,
        exchanges: Mapping[str, tuple[str, Iterable[str]]],
        *,
        replay: Path | None = None,
        **settings: Any,
    ) -> Self:
        """The exchanges of a pipeline, ``{key: (ccxt_id, symbols)}``, all simulated.

        Args:
            exchanges: what the pipeline collects.
            replay: folder of Parquet files to serve instead of generated candles.
            settings: further fields of this model (``seed``, ``clock`` …).

        Raises:
            ConfigError: an exchange the simulator does not speak, or a bad setting.
        """
        simulated: dict[str, object] = {}
        for key, (ccxt_id, symbols) in exchanges.items():
            dialect = DIALECT_OF_CCXT_ID.get(ccxt_id)
            if dialect is None:
                raise ConfigError(
                    f"The simulator does not speak {ccxt_id!r} (exchange {key!r}).",
                    hint=f"Use one of {_listed(DIALECT_OF_CCXT_ID)}, or the real exchange.",
                )
            simulated[key] = {"dialect": dialect, "symbols": list(symbols), "replay": replay}
        return cls.parse({"exchanges": simulated, **settings}, origin="The pipeline")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
