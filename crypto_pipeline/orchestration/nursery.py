"""A process that has imported what runs need, and forks one off for each.

Starting Python and importing Dagster, pandas and ccxt is 2 s of CPU, and a minute run's own work a
few tenths of one. ``python -m crypto_pipeline.orchestration.nursery`` does it once: it reads requests,
a line of JSON each, ``{"arguments": […]}`` of Dagster's own command line, and answers each with the
process that carries it out, ``{"pid": 123}``. It ends when its input does; its runs go on.

Nothing here may start a thread or open a connection before a fork. A change of the program or of
``pipeline.yaml`` is seen before the next run: the process then begins anew.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final

from ccxt.async_support import Exchange

# What the program `dagster` calls; a run is carried out by its `api execute_run`, as everywhere.
from dagster._cli import create_dagster_cli

import crypto_pipeline
from crypto_pipeline.corridor.garbage import collect_rarely
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.exchanges.strict import authorities
from crypto_pipeline.orchestration.processes import leave
from crypto_pipeline.settings import read_settings

#: Imported in the first run anyway, and by name only there.
_NEEDED: Final = (
    "dagster._cli.api",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.plan.active",
    "dagster._core.execution.plan.execute_plan",
    "dagster._core.instance.factory",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.storage.root",
    "dagster._core.system_config.composite_descent",
    "dagster._core.workspace.autodiscovery",
    "dagster._utils.test.definitions",
    "dagster_postgres",
    "ccxt.async_support",
    "pandera.pandas",
    "psycopg",
    "psycopg2.extras",
    "pyarrow.pandas_compat",
    "pyarrow.vendored.version",
    "upath.implementations.local",
    "crypto_pipeline.orchestration.instance_storage",
    "crypto_pipeline.orchestration.launcher",
)
_DEFINITIONS: Final = "crypto_pipeline.definitions"

#: Where ccxt finds the certificate authorities.
_CAFILE: Final[str] = Exchange().cafile

Stamp = dict[str, tuple[int, int]]


def main() -> None:
    """Serve requests until the input ends; in a forked process, carry out one of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: our input ends, too
    signal.signal(signal.SIGCHLD, lambda number, frame: _reap())
    stamp = _stamp()
    _prepare()
    waiting = sys.argv[1:]  # of the process this one took the place of
    while True:
        line = waiting.pop() if waiting else _read_line()
        if not line:
            return
        if _stamp() != stamp:
            os.execv(sys.executable, [sys.executable, "-m", __spec__.name, line])  # noqa: S606
        pid = os.fork()
        if not pid:
            _carry_out(json.loads(line)["arguments"])
        os.write(1, json.dumps({"pid": pid}).encode() + b"\n")


def _prepare() -> None:
    for name in _NEEDED:
        importlib.import_module(name)
    with suppress(ConfigError):  # the run that needs it says so, where it is seen
        importlib.import_module(_DEFINITIONS)
    with suppress(OSError):  # so does the run that needs them
        authorities(_CAFILE)
    gc.collect()
    gc.freeze()  # pages the collector does not touch stay shared


def _carry_out(arguments: list[str]) -> None:
    """Run Dagster's command in this process, and end it."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    collect_rarely()
    sys.argv[:] = ["dagster", *arguments]
    status = 1
    try:
        create_dagster_cli()(arguments, prog_name="dagster")  # type: ignore[no-untyped-call]
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - told as the interpreter tells what nobody caught
        traceback.print_exc()
    finally:
        leave(status)


def _read_line() -> str:
    """The next request: one line, and the next comes after its answer. Empty at the end."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65_536)
        if not part:
            return ""
        line += part
    return line.decode()


def _stamp() -> Stamp:
    """When what is read before a fork was last changed, and its size.

    The program's files, the pipeline file, the certificate authorities.
    """
    program = Path(crypto_pipeline.__file__).parent.rglob("*.py")
    files = [*program, read_settings().config_path, Path(_CAFILE)]
    found: Stamp = {}
    for path in files:
        with suppress(OSError):
            status = path.stat()
            found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
