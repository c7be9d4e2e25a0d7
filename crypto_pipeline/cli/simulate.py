"""``crypto-pipeline simulate``."""

from __future__ import annotations

from pathlib import Path

import click

from crypto_pipeline.cli.common import say, settings_with


@click.command("simulate")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Simulator file (docs/simulator.md); default: the exchanges of the pipeline file.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True)
def command(config: Path | None, port: int) -> None:
    """Run the exchange simulator alone, on 127.0.0.1, until Ctrl-C.

    Genuine ccxt classes talk to it: set urls.api of an exchange's ccxt section to the addresses it
    prints.
    """
    from crypto_pipeline.simulator import Simulator, SimulatorConfig, serve

    def ready(simulator: Simulator) -> None:
        for key in simulator.exchanges:
            say(f"{key}: {simulator.base_url(key)}")
        say("The simulator runs; Ctrl-C stops it.")

    if config is not None:
        simulated = SimulatorConfig.from_file(config)
    else:
        loaded = settings_with(None).load_config()
        simulated = SimulatorConfig.for_pipeline(
            {
                key: (exchange.ccxt_id, exchange.symbols)
                for key, exchange in loaded.pipeline.exchanges.items()
            }
        )
    serve(simulated, port=port, on_ready=ready)
