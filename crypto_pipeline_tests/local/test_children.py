"""The log of a program that runs for months."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from crypto_pipeline.local.children import running_group, shorten_log

CHATTER = "import sys, time\nn = 0\nwhile True: n += 1; print(n, flush=True); time.sleep(0.001)"


def test_a_log_is_shortened_under_the_program_that_writes_it(tmp_path: Path) -> None:
    """It goes on in the emptied file, without a hole before its next line; one old log stays."""
    log = tmp_path / "log"
    with running_group([sys.executable, "-c", CHATTER], dict(os.environ), output=log) as child:
        for limit in (500, 700):
            deadline = time.monotonic() + 20
            while log.stat().st_size <= limit and time.monotonic() < deadline:
                shorten_log(log, limit=1_000_000)  # not big enough
                time.sleep(0.01)
            assert log.stat().st_size > limit
            shorten_log(log, limit=limit)
            assert (tmp_path / "log.1").stat().st_size > limit
        while log.stat().st_size < 50:
            time.sleep(0.01)
        assert child.poll() is None
    lines = log.read_text().splitlines()
    assert all(line.isdecimal() for line in lines[1:10]), lines[:10]
    assert "\0" not in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]
