"""A whole pipeline for a test: configuration, lake, database, Dagster definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import dagster as dg
import pandas as pd
import yaml

from crypto_pipeline.core.timeframes import utc
from crypto_pipeline.database.connection import connect
from crypto_pipeline.orchestration.build import build_defs
from crypto_pipeline.orchestration.healing import SENSOR
from crypto_pipeline.orchestration.jobs import OHLCV_JOB
from crypto_pipeline.orchestration.resources import CcxtResource, ClockResource
from crypto_pipeline.orchestration.tags import EXCHANGE_TAG, RANGE_END, RANGE_START
from crypto_pipeline.settings import CONFIG, DATABASE_URL, HOME, Settings, read_settings
from crypto_pipeline.simulator import SimulatorHandle

CANDLE = ["exchange", "symbol", "timeframe", "open_time", "open", "high", "low", "close", "volume"]


@dataclass(frozen=True)
class Pipeline:
    """One deployment of its own, run in this process."""

    settings: Settings
    simulator: SimulatorHandle

    @classmethod
    def over(
        cls,
        simulator: SimulatorHandle,
        *,
        home: Path,
        database_url: str,
        start: date = date(2024, 3, 10),
        timeframes: Iterable[str] = ("1m",),
        exchanges: Mapping[str, Mapping[str, Any]] | None = None,
        **top: Any,
    ) -> Self:
        """A pipeline of the simulator's exchanges; ``exchanges`` adds or replaces keys of theirs."""
        document = {
            "exchanges": {
                key: {
                    "symbols": list(exchange.symbols),
                    "timeframes": list(timeframes),
                    "start": start,
                    "ccxt": simulator.ccxt_config(key),
                    "retry": {
                        "attempts": 2,
                        "first_wait_seconds": 0.01,
                        "longest_wait_seconds": 0.1,
                    },
                    "timeout_seconds": 5,
                    **(exchanges or {}).get(key, {}),
                }
                for key, exchange in simulator.config.exchanges.items()
            },
            **top,
        }
        path = home / "pipeline.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        environment = {CONFIG: str(path), HOME: str(home), DATABASE_URL: database_url}
        return cls(read_settings(environment), simulator)

    @property
    def now(self) -> int:
        """Our clock, ms: the simulator's shared one, which each exchange's may differ from."""
        exchange = next(iter(self.simulator.control.overview()["exchanges"].values()))
        return int(exchange["now_ms"] - exchange["clock_offset"] * 1_000)

    @cached_property
    def definitions(self) -> dg.Definitions:
        loaded = self.settings.load_config()
        clocks = {
            "clock": ClockResource(lambda: utc(self.now)),
            "ccxt": CcxtResource(
                loaded.pipeline,
                self.settings.require_database_url,
                loaded.secrets,
                clock=lambda: self.now,
            ),
        }
        return build_defs(settings=self.settings, resource_overrides=clocks)

    @cached_property
    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.ephemeral(tempdir=str(self.settings.home))

    def run(
        self,
        first: str,
        last: str | None = None,
        *,
        may_fail: bool = False,
        tags: Mapping[str, str] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run all assets and checks of a partition, or of the rectangle between two."""
        job = self.definitions.resolve_job_def(OHLCV_JOB)
        of_range = {} if last is None else {RANGE_START: first, RANGE_END: last}
        return job.execute_in_process(
            instance=self.instance,
            raise_on_error=not may_fail,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            partition_key=first if last is None else None,
            tags={**of_range, **(tags or {})},
        )

    def tick(self, exchange: str, day: str) -> dg.ExecuteInProcessResult:
        """A run as the minute schedule launches it; it may fail."""
        return self.run(f"{day}|{exchange}", may_fail=True, tags={EXCHANGE_TAG: exchange})

    def heal(self) -> list[dg.ExecuteInProcessResult]:
        """Evaluate the sensor that fills gaps and carry out the runs it asks for."""
        sensor = self.definitions.resolve_sensor_def(SENSOR)
        given = self.definitions.resources or {}
        wanted = {name: given[name] for name in sensor.required_resource_keys}
        with dg.build_sensor_context(
            instance=self.instance, definitions=self.definitions, resources=wanted
        ) as context:
            # Not evaluate_tick: that warns of the tags Dagster itself gives multi-partitioned runs.
            requests = [each for each in sensor(context) if isinstance(each, dg.RunRequest)]
        done = []
        for request in requests:
            first = request.partition_key or request.tags[RANGE_START]
            last = request.tags.get(RANGE_END)
            done.append(self.run(first, last, may_fail=True, tags=request.tags))
        return done

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with connect(self.settings.require_database_url()) as conn:
            return conn.execute(query, parameters or None).fetchall()

    def execute(self, statement: str) -> None:
        with connect(self.settings.require_database_url()) as conn:
            conn.execute(statement)

    def candles(self) -> pd.DataFrame:
        """Everything in the table, in key order, times as int64 ms."""
        frame = pd.DataFrame(
            self.rows(
                "SELECT exchange, symbol, timeframe, (extract(epoch FROM open_time) * 1000)::bigint,"
                " open, high, low, close, volume FROM candles"
                " ORDER BY exchange, symbol, timeframe, open_time"
            ),
            columns=CANDLE,
        )
        return frame.astype(dict.fromkeys(CANDLE[4:], "float64"))

    def truth(self, exchange: str, start: int, end: int, *, timeframe: str = "1m") -> pd.DataFrame:
        """What the exchange truly has of all its symbols in ``[start, end)``, in key order."""
        frames = [
            self.simulator.truth.candles(exchange, symbol, timeframe, start, end).assign(
                exchange=exchange, symbol=symbol, timeframe=timeframe
            )
            for symbol in sorted(self.simulator.config.exchanges[exchange].symbols)
        ]
        return pd.concat(frames, ignore_index=True)[CANDLE]


def results(result: dg.ExecuteInProcessResult) -> dict[tuple[str, str | None], Any]:
    """Check evaluations by name and partition."""
    return {
        (check.check_name, check.partition): check for check in result.get_asset_check_evaluations()
    }
