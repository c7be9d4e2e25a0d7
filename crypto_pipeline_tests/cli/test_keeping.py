"""One `up` a home, and what a killed one left behind is ended by the next."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from crypto_pipeline.cli import keeping
from crypto_pipeline.cli.keeping import alone
from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.settings import UP


def test_a_second_up_on_a_home_is_refused(tmp_path: Path) -> None:
    """Two daemons would launch every tick twice."""
    with (
        alone(tmp_path / "home"),
        pytest.raises(LocalServiceError, match="already"),
        alone(tmp_path / "home"),
    ):
        pass
    with alone(tmp_path / "home"), alone(tmp_path / "other"):
        pass


def test_what_a_killed_up_left_running_is_ended_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its webserver held the port, its daemon went on: the next `up` did not start."""
    monkeypatch.setattr(keeping, "_END_SECONDS", 0.5)
    home = tmp_path / "home"
    left = [
        subprocess.Popen(["sh", "-c", command], env={**os.environ, UP: str(home)})
        for command in ("sleep 100", "trap : TERM; while true; do sleep 0.1; done")
    ]
    others = [
        subprocess.Popen(["sleep", "100"], env={**os.environ, **env})
        for env in ({}, {UP: str(tmp_path / "other")})
    ]
    try:
        with alone(home):
            assert not any(psutil.pid_exists(process.pid) for process in left)
            assert [process.poll() for process in others] == [None, None]
        assert "that a killed `up` left behind" in capfd.readouterr().err
    finally:
        for process in [*left, *others]:
            process.kill()
            process.wait()
