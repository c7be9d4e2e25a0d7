"""``python -m crypto_pipeline.orchestration.backfill_process KEY START END``: range runs without a daemon.

The process of ``crypto-pipeline backfill``. It imports what runs need, one or two seconds of work, while
its parent checks the pipeline file and starts the database; then it takes the environment from its standard
input, as one JSON object, and runs. Where the input ends without one, so does the process.
"""

from __future__ import annotations

import gc
import importlib
import json
import signal
import sys
from collections.abc import Sequence

from crypto_pipeline.errors import CryptoPipelineError
from crypto_pipeline.orchestration.processes import leave
from crypto_pipeline.settings import add_to_environment


def main(arguments: Sequence[str]) -> int:
    """Run the ranges; the command's exit status."""
    gc.disable()  # it finds nothing in modules, and a third of the time of importing them is its
    backfill = importlib.import_module("crypto_pipeline.orchestration.backfill")
    gc.freeze()
    gc.enable()
    text = sys.stdin.buffer.read()
    if not text:
        return 1
    add_to_environment(json.loads(text))
    try:
        # A Ctrl-C of the time when the parent left this to us comes now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return int(backfill.main(arguments))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except CryptoPipelineError as error:
        backfill.say(f"Error: {error}")
        return 2


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
