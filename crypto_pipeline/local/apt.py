"""Fetching packages of another Debian suite without touching the system's own apt.

The mirror's address and its keyring come from the machine's own sources; the lists, the state and
the downloads live in a folder of ours. apt verifies signatures as always. Knows nothing of
PostgreSQL.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NO_KEY = "NO_PUBKEY"
KEYRING_PACKAGE = "debian-archive-keyring"
HTTP_TIMEOUT_SECONDS = 10

# `Targets` keeps apt from fetching what other software asks for (icons, command names). #clear keeps
# the system's hooks from running, which clean and notify the system's own apt. Error-Mode: for apt a
# mirror that does not answer is only a warning.
APT_CONF = """\
#clear APT::Update;
#clear DPkg;
Dir::Etc::sourcelist "{folder}/mirror.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::http::Timeout "{timeout}";
Acquire::https::Timeout "{timeout}";
"""


class AptError(Exception):
    """A package could not be fetched; the message is for people."""


@dataclass(frozen=True)
class Source:
    """One repository of the machine's apt configuration.

    Attributes:
        signed_by: keyring path(s), fingerprints or an embedded key; empty for apt's own trust.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    def deb822(self) -> str:
        """The source in apt's own notation."""
        signed_by = f"Signed-By: {self.signed_by}\n" if self.signed_by else ""
        return (
            f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\n"
            f"Components: {' '.join(self.components)}\n{signed_by}Targets: Packages\n"
        )


def parse_one_line(text: str) -> Iterator[Source]:
    """Sources of a ``.list`` file: ``deb [signed-by=…] URI SUITE COMPONENT…``."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<rest>[^#]+)", line)
        if not found:
            continue
        uri, suite, *components = found["rest"].split()
        signed_by = re.search(r"(?:^|\s)signed-by=(\S+)", found["options"] or "", re.IGNORECASE)
        yield Source(
            uri, suite, tuple(components), signed_by[1].replace(",", " ") if signed_by else ""
        )


def parse_deb822(text: str) -> Iterator[Source]:
    """Sources of a ``.sources`` file: stanzas of ``Field: value`` with continued lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.lower(): value.strip()
            for name, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components, fields.get("signed-by", ""))


def machine_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """Every source of the machine, in apt's order."""
    sources: list[Source] = []
    parts = folder / "sources.list.d"
    for path in (folder / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else ())):
        parse = {".list": parse_one_line, ".sources": parse_deb822}.get(path.suffix)
        if parse is not None and path.is_file():
            sources += parse(path.read_text(encoding="utf-8", errors="replace"))
    return sources


def release_sources(sources: Sequence[Source], codename: str) -> list[Source]:
    """The machine's own release on each mirror, security and third-party repositories left out."""
    names = {codename, "stable", "testing", "unstable", "sid"}
    found = {s.uri: s for s in sources if s.suite in names and "main" in s.components}
    return [replace(source, components=("main",)) for source in found.values()]


def fetch(
    packages: Sequence[str], *, source: Source, folder: Path, deadline: float
) -> tuple[Path, dict[str, str]]:
    """Fetch and unpack packages of one source.

    Args:
        packages: names.
        source: where from.
        folder: empty folder to work in.
        deadline: ``time.monotonic()`` at which to give up.

    Returns:
        The folder the packages are unpacked in, and the version of each.
    """
    for name in ("state/lists/partial", "cache/archives/partial", "debs", "root"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "mirror.sources").write_text(source.deb822(), encoding="utf-8")
    conf = folder / "apt.conf"
    conf.write_text(APT_CONF.format(folder=folder, timeout=HTTP_TIMEOUT_SECONDS), encoding="utf-8")

    apt = ["apt-get", "--quiet", "--quiet", f"--config-file={conf}"]
    _run([*apt, "update"], folder, deadline)
    _run([*apt, "download", *packages], folder / "debs", deadline)
    versions = {}
    for deb in sorted((folder / "debs").glob("*.deb")):
        _run(["dpkg", "--extract", str(deb), str(folder / "root")], folder, deadline)
        shown = _run(["dpkg-deb", "--show", str(deb)], folder, deadline)
        name, version = shown.split()
        versions[name.partition(":")[0]] = version
    return folder / "root", versions


def fetch_from_suite(
    packages: Sequence[str], *, own: Source, suite: str, folder: Path, deadline: float
) -> tuple[Path, dict[str, str]]:
    """Fetch packages of another suite of the mirror that serves ``own``, the machine's release.

    A keyring older than the suite cannot verify it. Then the machine's own release, which it can
    verify, gives the keyring of today: the chain of signatures stays whole.
    """
    wanted = replace(own, suite=suite)
    try:
        return fetch(packages, source=wanted, folder=folder / "first", deadline=deadline)
    except AptError as error:
        if NO_KEY not in str(error):
            raise
    root, _ = fetch([KEYRING_PACKAGE], source=own, folder=folder / "keyring", deadline=deadline)
    keyring = root / "usr/share/keyrings/debian-archive-keyring.gpg"
    if not keyring.exists():
        keyring = keyring.with_suffix(".pgp")
    wanted = replace(wanted, signed_by=str(keyring))
    return fetch(packages, source=wanted, folder=folder / "second", deadline=deadline)


def missing_tool() -> str | None:
    """The first of the programs needed that this machine lacks."""
    return next((name for name in ("apt-get", "dpkg", "dpkg-deb") if not shutil.which(name)), None)


def _run(argv: Sequence[str], folder: Path, deadline: float) -> str:
    """Run a program of apt's; what it says on failure becomes the reason."""
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=max(0.1, deadline - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"{argv[0]} took too long"
        raise AptError(msg) from error
    except OSError as error:
        raise AptError(str(error)) from error
    if done.returncode:
        lines = done.stderr.splitlines()
        said = [line for line in lines if line.startswith(("E:", "dpkg")) or NO_KEY in line]
        raise AptError(" ".join(dict.fromkeys(said)) or f"{argv[0]} ended with {done.returncode}")
    return done.stdout
