"""What `crypto-pipeline up` does about a part of it that dies: start it again, and go on.

Each part can be killed at any moment; what is stored is whole whatever happens
(``docs/reliability.md``), so all that is left to do is to have every part running again.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from crypto_pipeline.cli.common import say
from crypto_pipeline.cli.webserver import Webserver
from crypto_pipeline.database.connection import connect
from crypto_pipeline.errors import DatabaseError, LocalServiceError
from crypto_pipeline.local import DAGSTER_DATABASE, DATABASE, LocalPostgres
from crypto_pipeline.local.children import running_group, shorten_log
from crypto_pipeline.local.processes import FileLock, held
from crypto_pipeline.settings import DAGSTER_URL, DATABASE_URL, UP, Settings

_READY_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 3
#: Loading takes a while, and loading again ends what is just being started.
_RELOAD_SECONDS: Final = 60.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
#: What has run for so long and dies is started again at once.
_STABLE_SECONDS: Final = 120.0
_END_SECONDS: Final = 10.0
#: Dagster tells every step of every run: about 50 MB a day for three exchanges.
_LOG_BYTES: Final = 100_000_000
_CODE_SERVER: Final = "dagster api grpc"


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """The only `up` of a home; what a killed one left running is ended first.

    Raises:
        LocalServiceError: another one runs.
    """
    home.mkdir(parents=True, exist_ok=True)
    with held(FileLock(home / "up.lock")) as lock:
        if not lock.try_acquire():
            raise LocalServiceError(
                f"`crypto-pipeline up` runs on {home} already.",
                hint="stop it, or set CRYPTO_PIPELINE_HOME elsewhere.",
            )
        left = list(_processes_of(home))
        if left:
            say(f"Ending {len(left)} processes that a killed `up` left behind …")
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        _, still = psutil.wait_procs(left, timeout=_END_SECONDS)
        for process in still:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(still, timeout=_END_SECONDS)
        yield


def _processes_of(home: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(UP) == str(home):
                yield process


class Keeper:
    """Keeps the local database, Dagster's processes and the code server running.

    Args:
        settings: this process's.
        environment: of the processes; ``environment`` is the one in force, which may change.
        workspace: Dagster's workspace file.
        port: the UI's.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], *, workspace: Path, port: int
    ) -> None:
        self.environment: Mapping[str, str] = {**environment, UP: str(settings.home)}
        self.webserver = Webserver(f"http://127.0.0.1:{port}")
        self._settings = settings
        self._command = ["dagster", "dev", "--workspace", str(workspace)]
        self._command += ["--host", "127.0.0.1", "--port", str(port)]
        self._log = settings.home / "logs" / "dagster.log"
        self._database = LocalPostgres(settings.home, cache=settings.cache, log=say)
        self._stack = ExitStack()
        self._group: AbstractContextManager[subprocess.Popen[bytes]] | None = None
        self._dagster: subprocess.Popen[bytes] | None = None
        self._started = self._looked = 0.0
        self._reloaded = -_RELOAD_SECONDS
        self._pause = 0.0
        self._was_away = False

    def __enter__(self) -> Self:
        if self._is_local:
            self._stack.enter_context(self._database)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._stop()
        finally:
            self._stack.close()

    def start(self) -> None:
        """Start Dagster, and wait until it answers.

        Raises:
            LocalServiceError: it does not come up.
        """
        self._launch()
        try:
            self.webserver.wait_ready(timeout=_READY_SECONDS, alive=self._alive)
        except LocalServiceError as error:
            raise LocalServiceError(error.message, hint=f"see {self._log}.") from error

    def look(self) -> None:
        """Start again what has died since the last look."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS and self._alive():
            return
        self._looked = now
        shorten_log(self._log, limit=_LOG_BYTES)
        self._see_to_database()
        if not self._alive():
            self._see_to_dagster(now)
            return
        if now - self._reloaded < _RELOAD_SECONDS:
            return
        with suppress(LocalServiceError):  # just coming up, or busy: asked again soon
            for name in self.webserver.broken_locations():
                self._reloaded = now
                say(f"The code server of {name} had died, or cannot load it: starting it again.")
                self.webserver.reload(name)

    @property
    def _is_local(self) -> bool:
        return self._settings.database_url is None or self._settings.dagster_url is None

    def _alive(self) -> bool:
        return self._dagster is not None and self._dagster.poll() is None

    def _launch(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._group = running_group(self._command, self.environment, output=self._log)
        self._dagster = self._group.__enter__()
        self._started = time.monotonic()

    def _stop(self) -> None:
        group, self._group, self._dagster = self._group, None, None
        if group is not None:
            group.__exit__(None, None, None)

    def _see_to_database(self) -> None:
        """The local server is started again if it does not answer; the code server afterwards."""
        if self._database_answers():
            if self._was_away:
                self._was_away = False
                self._end_code_servers()
            return
        self._was_away = True
        if not self._is_local:
            return
        try:
            server = self._database.acquire()
        except LocalServiceError as error:
            say(f"Warning: the database does not come back: {error}")
            return
        say("The database had ended, or did not answer; it runs.")
        urls = {}
        if self._settings.database_url is None:
            urls[DATABASE_URL] = server.url(DATABASE)
        if self._settings.dagster_url is None:
            urls[DAGSTER_URL] = server.url(DAGSTER_DATABASE)
        if not urls.items() <= self.environment.items():  # somebody took its port meanwhile
            self.environment = {**self.environment, **urls}
            self._stop()

    def _database_answers(self) -> bool:
        try:
            for name in (DATABASE_URL, DAGSTER_URL):
                # Dagster's may be SQLAlchemy's, with a driver named
                url = self.environment[name].replace("+psycopg2://", "://", 1)
                with connect(url, connect_timeout=_CONNECT_SECONDS):
                    pass
        except DatabaseError:
            return False
        return True

    def _end_code_servers(self) -> None:
        """End the code servers, which are then started anew; runs under way go on without them.

        One in which a run ended while the database was away no longer lets go of the runs it started,
        and would come to its limit of open files (test_upstream_pins.py).
        """
        if self._dagster is None:
            return
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._dagster.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if _CODE_SERVER in " ".join(process.cmdline()):
                        process.kill()

    def _see_to_dagster(self, now: float) -> None:
        """Dagster has ended: at once if it had run for long, else after pauses that grow."""
        if now - self._started > _STABLE_SECONDS + self._pause:
            self._pause = 0.0
        if now - self._started < self._pause:
            return
        status = "" if self._dagster is None else f" (status {self._dagster.returncode})"
        say(f"Dagster ended by itself{status}; see {self._log}. Starting it again …")
        self._stop()  # ends what it left
        self._pause = min(_LONGEST_PAUSE_SECONDS, 2 * self._pause or 2.0)
        self._launch()
