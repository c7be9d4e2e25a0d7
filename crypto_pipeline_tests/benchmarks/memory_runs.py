"""The runs that :mod:`crypto_pipeline_tests.benchmarks.memory` measures, beside their database."""

from __future__ import annotations

import json
import sys

from crypto_pipeline_tests.benchmarks.memory import runs

if __name__ == "__main__":
    sys.stdout.write(json.dumps(runs(*sys.argv[1:])) + "\n")
