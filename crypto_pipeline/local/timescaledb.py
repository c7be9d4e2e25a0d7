"""Finding TimescaleDB for the embedded PostgreSQL, without a build and without Docker.

Debian's package is fetched once and unpacked into the cache. It is built against a newer C library
than many machines have, so the suite's own C library is unpacked beside it, and the server is
started through that one's loader where the machine's is too old. See ``docs/adr`` for the
alternatives.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from crypto_pipeline.local import apt
from crypto_pipeline.local.processes import FileLock, held

POSTGRES_MAJOR = 18
EXTENSION_PACKAGE = f"postgresql-{POSTGRES_MAJOR}-timescaledb"
# The extension calls OpenSSL, which Debian's PostgreSQL links and ours does not.
SSL_LIBRARIES = ("libssl.so.3", "libcrypto.so.3", "libz.so.1", "libzstd.so.1")
PACKAGES = (EXTENSION_PACKAGE, "libc6", "libssl3t64", "zlib1g", "libzstd1")
SUITES = ("forky", "sid")  # the suites after Debian 13 that have the package; the steadier first

FETCH_SECONDS = 120.0
RETRY_AFTER_SECONDS = 600.0


class TimescaleUnavailable(Exception):
    """TimescaleDB cannot be had here; the message is the reason. Plain PostgreSQL still runs."""


@dataclass(frozen=True)
class TimescaleFiles:
    """The extension, unpacked.

    Attributes:
        root: folder that stands for ``/`` of the packages.
        versions: version of each package.
        needs_glibc: newest version of the C library its libraries ask for.
    """

    root: Path
    versions: dict[str, str]
    needs_glibc: tuple[int, int]

    @property
    def control_path(self) -> Path:
        """For ``extension_control_path``."""
        return self.root / f"usr/share/postgresql/{POSTGRES_MAJOR}"

    @property
    def library_path(self) -> Path:
        """For ``dynamic_library_path``."""
        return self.root / f"usr/lib/postgresql/{POSTGRES_MAJOR}/lib"

    @property
    def loader_library(self) -> Path:
        """The library PostgreSQL preloads."""
        return self.library_path / "timescaledb.so"

    @property
    def default_version(self) -> str:
        """Version of the extension that ``CREATE EXTENSION`` makes."""
        control = (self.control_path / "extension/timescaledb.control").read_text(encoding="utf-8")
        found = re.search(r"default_version\s*=\s*'([^']+)'", control)
        return found[1] if found else "unknown"

    def launch(self, postgres: Path, *, glibc: tuple[int, int]) -> tuple[list[str], dict[str, str]]:
        """The start of the server's command line, and what its environment needs.

        Args:
            postgres: the server's program.
            glibc: version of this machine's C library.
        """
        if glibc >= self.needs_glibc:
            preload = self.root / "preload"
            return [str(postgres)], {
                "LD_LIBRARY_PATH": str(preload),
                "LD_PRELOAD": SSL_LIBRARIES[0],
            }
        loader = next(self.root.glob("usr/lib/*/ld-linux-*.so.*"))
        return [
            str(loader),
            *("--library-path", str(loader.parent)),
            *("--preload", SSL_LIBRARIES[0]),
            *("--argv0", str(postgres)),
            str(postgres),
        ], {}


def machine_glibc() -> tuple[int, int]:
    """Version of this machine's C library; (0, 0) where it is another one."""
    name = os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", name or "")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_timescaledb(
    cache: Path,
    *,
    apt_folder: Path = Path("/etc/apt"),
    suites: tuple[str, ...] = SUITES,
    fetch_seconds: float = FETCH_SECONDS,
) -> TimescaleFiles:
    """The unpacked extension, from the cache or else from the machine's Debian mirror.

    Raises:
        TimescaleUnavailable: it cannot be had; asked again after ten minutes at the earliest, so
            that a machine without network starts at once.
    """
    if sys.platform != "linux" or machine_glibc() == (0, 0):
        msg = f"it is packaged for Linux with the GNU C library, and this is {platform.platform()}"
        raise TimescaleUnavailable(msg)
    if ":" in str(cache):
        msg = f"PostgreSQL takes no extension path with a colon, as in {cache}"
        raise TimescaleUnavailable(msg)
    target = cache / f"timescaledb-pg{POSTGRES_MAJOR}-{platform.machine()}"
    deadline = time.monotonic() + fetch_seconds
    try:
        if (files := _load(target)) is not None:
            return files
        cache.mkdir(parents=True, exist_ok=True)
        with held(FileLock(cache / "timescaledb.lock")) as lock:
            if not lock.acquire(timeout=fetch_seconds):
                msg = f"another process has been fetching it for {fetch_seconds:.0f} s"
                raise TimescaleUnavailable(msg)
            if (files := _load(target)) is not None:
                return files
            _refuse_if_failed_lately(cache)
            try:
                return _fetch(target, _own_sources(apt_folder), suites, deadline)
            except TimescaleUnavailable as error:
                _failure_note(cache).write_text(str(error), encoding="utf-8")
                raise
    except OSError as error:
        msg = f"the cache {cache} cannot be used: {error}"
        raise TimescaleUnavailable(msg) from error


def _load(target: Path) -> TimescaleFiles | None:
    """What the cache holds; it is put there whole or not at all."""
    try:
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    major, minor = manifest["needs_glibc"]
    return TimescaleFiles(target / "root", manifest["versions"], (major, minor))


def _own_sources(apt_folder: Path) -> list[apt.Source]:
    """The machine's own release on its mirrors."""
    if tool := apt.missing_tool():
        msg = f"this machine has no {tool}"
        raise TimescaleUnavailable(msg)
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    sources = apt.release_sources(apt.machine_sources(apt_folder), codename)
    if not sources:
        msg = f"{apt_folder} names no mirror of this release ({codename or 'unnamed'})"
        raise TimescaleUnavailable(msg)
    return sources


def _fetch(
    target: Path, sources: list[apt.Source], suites: tuple[str, ...], deadline: float
) -> TimescaleFiles:
    """Fetch into a folder beside ``target``, and rename that when it is whole."""
    for leftover in target.parent.glob(f".{target.name}-*"):  # of a fetch that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    reasons = []
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        Path(name).chmod(0o755)  # apt gives up root's rights while it downloads, if it can
        for attempt, (own, suite) in enumerate((o, s) for o in sources for s in suites):
            work = Path(name) / str(attempt)
            try:
                root, versions = apt.fetch_from_suite(
                    PACKAGES, own=own, suite=suite, folder=work, deadline=deadline
                )
            except apt.AptError as error:
                reasons.append(f"{suite}: {error}")
                continue
            whole = Path(name) / "whole"
            _finish(root, versions, whole)
            whole.rename(target)
            break
    if (files := _load(target)) is None:
        msg = f"{EXTENSION_PACKAGE} could not be fetched ({'; '.join(reasons)})"
        raise TimescaleUnavailable(msg)
    return files


def _finish(root: Path, versions: dict[str, str], whole: Path) -> None:
    """Lay out what the cache keeps: the unpacked root, the libraries to preload, the manifest."""
    whole.mkdir(mode=0o755)
    root = root.rename(whole / "root")
    preload = root / "preload"  # apart from libc.so.6, which must not mix with the machine's own
    preload.mkdir()
    libraries = [next(root.glob(f"usr/lib/*/{name}")) for name in SSL_LIBRARIES]
    for library in libraries:
        (preload / library.name).symlink_to(os.path.relpath(library, preload))
    extension = root / f"usr/lib/postgresql/{POSTGRES_MAJOR}/lib"
    needs = max(required_glibc(path) for path in (*extension.glob("*.so"), *libraries))
    manifest = {"versions": versions, "needs_glibc": needs}
    (whole / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def required_glibc(library: Path) -> tuple[int, int]:
    """The newest version of the C library that a shared library asks for."""
    found = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def _failure_note(cache: Path) -> Path:
    return cache / "timescaledb.failed"


def _refuse_if_failed_lately(cache: Path) -> None:
    note = _failure_note(cache)
    try:
        age = time.time() - note.stat().st_mtime
        reason = note.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    if 0 <= age < RETRY_AFTER_SECONDS:
        raise TimescaleUnavailable(reason)
    note.unlink()
