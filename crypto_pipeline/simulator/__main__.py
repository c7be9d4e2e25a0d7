"""``python -m crypto_pipeline.simulator --config FILE --port N``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.simulator.config import SimulatorConfig
from crypto_pipeline.simulator.process import serve
from crypto_pipeline.simulator.server import Simulator

DEFAULT_PORT = 8090


def main(arguments: list[str] | None = None) -> int:
    """Serve until interrupted; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m crypto_pipeline.simulator", description=__doc__
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="YAML or JSON file")
    source.add_argument(
        "--child", action="store_true", help="read one line of JSON from stdin, serve until it ends"
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: a free one")
    options = parser.parse_args(arguments)
    try:
        if options.child:
            config = SimulatorConfig.parse(json.loads(sys.stdin.readline()), origin="stdin")
        else:
            config = SimulatorConfig.from_file(options.config)
        serve(config, port=options.port, on_ready=_announce, until_eof=options.child)
    except CryptoPipelineError as error:
        if options.child:
            _say({"error": str(error)})
        else:
            sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _announce(simulator: Simulator) -> None:
    """Where everything is."""
    _say(
        {
            "base_url": f"http://127.0.0.1:{simulator.port}",
            "urls": {key: simulator.base_url(key) for key in simulator.exchanges},
        }
    )


def _say(content: object) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
