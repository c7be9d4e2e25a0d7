"""The extension comes from the machine's own mirror, verified, once, and never by halves."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from crypto_pipeline.local import apt, timescaledb
from crypto_pipeline.local.processes import FileLock, held
from crypto_pipeline.local.timescaledb import TimescaleFiles, TimescaleUnavailable, find_timescaledb

POSTGRES = Path("/opt/pg/bin/postgres")


def files_needing(root: Path, needs: tuple[int, int]) -> TimescaleFiles:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "ld-linux-x86-64.so.2").touch()
    return TimescaleFiles(root, {}, needs)


def test_a_new_c_library_only_preloads_openssl(tmp_path):
    """Two C libraries in one process crash, so only OpenSSL comes from the package there."""
    argv, env = files_needing(tmp_path, (2, 38)).launch(POSTGRES, glibc=(2, 38))
    assert argv == [str(POSTGRES)]
    assert env == {"LD_LIBRARY_PATH": f"{tmp_path}/preload", "LD_PRELOAD": "libssl.so.3"}


def test_an_old_c_library_is_replaced_by_the_packages(tmp_path):
    """Debian 12 has 2.36; a path with a space must survive, as --preload splits at spaces."""
    root = tmp_path / "with space"
    argv, env = files_needing(root, (2, 38)).launch(POSTGRES, glibc=(2, 36))
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    assert argv == [
        f"{libraries}/ld-linux-x86-64.so.2",
        *("--library-path", libraries, "--preload", "libssl.so.3", "--argv0", str(POSTGRES)),
        str(POSTGRES),
    ]
    assert env == {}


def test_versions_of_the_c_library_compare_as_numbers(tmp_path):
    """2.4 is older than 2.38."""
    library = tmp_path / "x.so"
    library.write_bytes(b"\0GLIBC_2.4\0GLIBC_2.38\0GLIBC_2.17\0GLIBC_PRIVATE\0")
    assert timescaledb.required_glibc(library) == (2, 38)


def test_the_preloaded_libraries_hold_no_c_library(timescaledb):
    """LD_LIBRARY_PATH reaches every library: the machine's loader with another libc.so.6 crashes."""
    names = {path.name for path in (timescaledb.root / "preload").iterdir()}
    assert names == {"libssl.so.3", "libcrypto.so.3", "libz.so.1", "libzstd.so.1"}
    assert all(path.exists() for path in (timescaledb.root / "preload").iterdir())
    assert timescaledb.versions["postgresql-18-timescaledb"].startswith(timescaledb.default_version)


def test_two_fetches_at_once_give_one_whole_cache(tmp_path):
    """`up` and `exec` started together on a fresh machine; a fetch killed before left a folder."""
    killed = tmp_path / f".timescaledb-pg18-{timescaledb.platform.machine()}-killed"
    (killed / "0").mkdir(parents=True)
    found: list[TimescaleFiles | TimescaleUnavailable] = []

    def fetch() -> None:
        try:
            found.append(find_timescaledb(tmp_path))
        except TimescaleUnavailable as reason:
            found.append(reason)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if isinstance(found[0], TimescaleUnavailable):
        pytest.skip(str(found[0]))
    assert found[0] == found[1]
    assert not killed.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        found[0].root.parent.name,
        "timescaledb.lock",
    }


def test_a_keyring_older_than_the_suite_is_renewed_through_the_own_release(tmp_path):
    """A signature is never skipped: what the machine trusts vouches for the newer keyring."""
    codename = timescaledb.platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    old_keyring = Path(f"/usr/share/keyrings/debian-archive-{codename}-stable.gpg")
    sources = apt.release_sources(apt.machine_sources(), codename)
    if not old_keyring.exists() or not sources:
        pytest.skip("not a Debian release with its keyring")
    own = replace(sources[0], signed_by=str(old_keyring))
    deadline = time.monotonic() + 60
    suite = timescaledb.SUITES[0]
    with pytest.raises(apt.AptError) as refused:
        apt.fetch(
            ["libzstd1"],
            source=replace(own, suite=suite),
            folder=tmp_path / "old",
            deadline=deadline,
        )
    if apt.NO_KEY not in str(refused.value):
        pytest.skip(f"the mirror is away: {refused.value}")
    root, versions = apt.fetch_from_suite(
        ["libzstd1"], own=own, suite=suite, folder=tmp_path / "new", deadline=deadline
    )
    assert versions
    assert list(root.glob("usr/lib/*/libzstd.so.1"))


def test_a_failure_is_remembered_for_a_while(tmp_path, monkeypatch):
    """On a train, the second start must not wait for the network again."""
    with pytest.raises(TimescaleUnavailable, match="no-such-suite: "):
        find_timescaledb(tmp_path, suites=("no-such-suite",))
    monkeypatch.setattr(timescaledb, "_fetch", lambda *_: pytest.fail("asked again at once"))
    with pytest.raises(TimescaleUnavailable, match="no-such-suite: "):
        find_timescaledb(tmp_path, suites=("no-such-suite",))
    later = time.time() + timescaledb.RETRY_AFTER_SECONDS + 1
    monkeypatch.setattr(timescaledb.time, "time", lambda: later)
    monkeypatch.setattr(timescaledb, "_fetch", lambda *_: "asked again")
    assert find_timescaledb(tmp_path, suites=("no-such-suite",)) == "asked again"


def test_a_machine_without_apt_is_told_so(tmp_path, monkeypatch):
    """Fedora, Alpine, macOS: plain PostgreSQL and the reason."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TimescaleUnavailable, match="no apt-get"):
        find_timescaledb(tmp_path / "cache")


def test_a_machine_without_a_mirror_is_told_so(tmp_path):
    """A container whose sources were removed."""
    with pytest.raises(TimescaleUnavailable, match="names no mirror of this release"):
        find_timescaledb(tmp_path / "cache", apt_folder=tmp_path)


def test_a_fetch_that_takes_too_long_is_given_up(tmp_path):
    """A network that swallows packets must not hold up the start."""
    with held(FileLock(tmp_path / "timescaledb.lock")) as other:
        assert other.try_acquire()
        with pytest.raises(TimescaleUnavailable, match="another process"):
            find_timescaledb(tmp_path, fetch_seconds=0.1)
    with pytest.raises(TimescaleUnavailable, match="took too long"):
        find_timescaledb(tmp_path, fetch_seconds=0.001)


def test_a_cache_that_cannot_be_written_is_a_reason_not_a_crash(tmp_path):
    """A read-only home directory."""
    (tmp_path / "file").touch()
    with pytest.raises(TimescaleUnavailable, match="cannot be used"):
        find_timescaledb(tmp_path / "file" / "cache")


def test_a_cache_is_used_without_apt_and_network(timescaledb, monkeypatch, tmp_path):
    """Fetched once, started offline ever after."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_timescaledb(timescaledb.root.parents[1]) == timescaledb


def test_apt_of_this_machine_is_not_touched(tmp_path, timescaledb):
    """`apt update` of a user must not see our suite, nor our lists its folder."""
    del timescaledb
    if shutil.which("apt-cache") is None:
        pytest.skip("no apt here")
    own = apt.Source("file:///no/such/mirror", "forky", ("main",))
    lists = Path("/var/lib/apt/lists")
    before = lists.stat().st_mtime_ns
    with pytest.raises(apt.AptError):
        apt.fetch(["x"], source=own, folder=tmp_path / "work", deadline=time.monotonic() + 30)
    assert lists.stat().st_mtime_ns == before
