"""What ``up --demo`` adds: simulated exchanges, a pipeline file for them, a first backfill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from crypto_pipeline.config.load import LoadedConfig
from crypto_pipeline.settings import CONFIG, SIMULATOR_URL, Settings
from crypto_pipeline.simulator import SimulatorConfig, running_simulator

HISTORY_DAYS: Final = 3

_SYMBOLS: Final = {
    "binance": ("binance", ["BTC/USDT", "ETH/USDT", "SOL/USDT"]),
    "kraken": ("kraken", ["BTC/USD", "ETH/USD"]),
    "coinbaseexchange": ("coinbaseexchange", ["BTC/USD", "ETH/USD"]),
}

_PIPELINE: Final = """\
# Written by `crypto-pipeline up --demo`: exchanges that the simulator plays, on this machine.
exchanges:
  binance:
    symbols: ["BTC/USDT", "ETH/USDT", "SOL/USDT"]
    timeframes: ["1m", "1h"]
    start: {start}
    ccxt: {{enableRateLimit: false, urls: {{api: {{public: "${{{simulator}}}/binance/api/v3"}}}}}}
  kraken:
    symbols: ["BTC/USD", "ETH/USD"]
    start: {start}
    ccxt: {{enableRateLimit: false, urls: {{api: {{public: "${{{simulator}}}/kraken"}}}}}}
  coinbaseexchange:
    symbols: ["BTC/USD", "ETH/USD"]
    start: {start}
    ccxt: {{enableRateLimit: false, urls: {{api: {{public: "${{{simulator}}}/coinbaseexchange"}}}}}}
"""


@contextmanager
def demo_settings(settings: Settings) -> Iterator[Settings]:
    """Settings of the demo, while its simulator runs.

    Raises:
        LocalServiceError: the simulator does not start.
    """
    with running_simulator(SimulatorConfig.for_pipeline(_SYMBOLS)) as simulator:
        path = _pipeline_file(settings.home)
        yield replace(
            settings,
            config_path=path,
            environment={
                **settings.environment,
                SIMULATOR_URL: simulator.base_url,
                CONFIG: str(path),
            },
        )


def _pipeline_file(home: Path) -> Path:
    """The demo's pipeline file, written once: the first day of history must not move."""
    path = home / "demo.yaml"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        start = datetime.now(UTC).date() - timedelta(days=HISTORY_DAYS)
        path.write_text(_PIPELINE.format(start=start, simulator=SIMULATOR_URL), encoding="utf-8")
    return path


def history_partitions(loaded: LoadedConfig, lake: str) -> Sequence[str]:
    """The partitions before today that the lake does not hold whole, exchange by exchange."""
    from crypto_pipeline.core.intervals import subtract
    from crypto_pipeline.core.timeframes import DAY_MS, day_start_ms
    from crypto_pipeline.orchestration.partitions import partition_key
    from crypto_pipeline.orchestration.resources import LakeResource

    zone = LakeResource(lake).raw()
    today = datetime.now(UTC).date()
    partitions = []
    for key, exchange in loaded.pipeline.exchanges.items():
        for day in (exchange.start + timedelta(n) for n in range((today - exchange.start).days)):
            coverage = zone.summary(key, day).coverage
            whole = (day_start_ms(day), day_start_ms(day) + DAY_MS)
            if any(subtract([whole], coverage.of(series).settled) for series in exchange.series):
                partitions.append(partition_key(key, day))
    return partitions
