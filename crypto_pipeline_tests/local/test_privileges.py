"""The server is an ordinary user whoever we are, and has no more rights than it needs."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

import crypto_pipeline
from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.local import LocalPostgres, privileges
from crypto_pipeline.local.privileges import Identity
from crypto_pipeline_tests.local.conftest import no_timescaledb, server_pid

if TYPE_CHECKING:
    from collections.abc import Iterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root drops privileges")
READ_SEARCH = 1 << 2
OVERRIDE = 1 << 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder every user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@needs_root
def test_in_an_open_home_the_server_has_no_rights_of_roots(open_folder):
    """A hole in PostgreSQL must not open the machine."""
    home = open_folder / "home"
    with LocalPostgres(home, find=no_timescaledb):
        status = status_of(server_pid(home))
        assert set(status["Uid"].split()) == {str(privileges.FIRST_SERVER_UID)}
        assert set(status["Gid"].split()) == {str(privileges.FIRST_SERVER_UID)}
        assert status["Groups"] == ""
        readable = Path(sys.prefix).stat().st_mode & 0o005 == 0o005
        if readable and not any(p.stat().st_mode & 0o001 == 0 for p in Path(sys.prefix).parents):
            assert int(status["CapEff"], 16) == 0


@needs_root
def test_in_a_home_only_root_can_enter_it_gets_one_right_more(fresh_home, tmp_path):
    """`mktemp -d`, /root and pytest's folders are 0700: PostgreSQL as another user was kept out."""
    tmp_path.chmod(0o700)
    with LocalPostgres(fresh_home, find=no_timescaledb):
        status = status_of(server_pid(fresh_home))
        assert "0" not in status["Uid"].split()
        assert int(status["CapEff"], 16) in (READ_SEARCH, OVERRIDE)
        assert status["NoNewPrivs"] == "1"


@needs_root
@pytest.mark.parametrize(
    "identity",
    [
        Identity(uid=privileges.FIRST_SERVER_UID, capability="dac_override"),
        Identity(namespace_uid=65534),
    ],
    ids=["Docker's default capabilities", "a single user id"],
)
def test_the_fallbacks_serve_a_private_home_too(fresh_home, monkeypatch, identity):
    """Where CAP_DAC_READ_SEARCH or other user ids are not to be had."""
    monkeypatch.setattr(privileges, "_identities_for_root", lambda _: iter([identity]))
    try:
        with LocalPostgres(fresh_home, find=no_timescaledb):
            pass
    except LocalServiceError as error:
        if "Tried: " not in str(error):
            raise
        pytest.skip(f"forbidden here: {error}")
    with LocalPostgres(fresh_home, find=no_timescaledb):
        assert server_pid(fresh_home)


@needs_root
def test_no_way_at_all_is_said_with_what_was_tried(home, monkeypatch):
    """The message is all the user has to find out which right is missing."""
    monkeypatch.setattr(privileges, "_identities_for_root", lambda _: iter([Identity(uid=1)]))
    with pytest.raises(
        LocalServiceError, match=r"Tried: Identity\(uid=1.*Permission denied|can't cd"
    ):
        LocalPostgres(home, find=no_timescaledb).acquire()


@needs_root
def test_a_home_made_by_an_ordinary_user_stays_theirs(open_folder, plain_template):
    """One `sudo make demo` in a checkout must not lock its user out."""
    user = 3456
    home = open_folder / "home"
    subprocess.run(["cp", "-a", plain_template, home], check=True)
    subprocess.run(["chown", "-R", f"{user}:{user}", home], check=True)
    (home / "postgres/server.conf").unlink()
    with LocalPostgres(home, find=no_timescaledb):
        assert status_of(server_pid(home))["Uid"].split()[0] == str(user)
    owners = {path.stat().st_uid for path in home.rglob("*")}
    assert owners == {user}


def python_of(user: int, environment: dict[str, str]) -> str:
    """A Python of our version that an ordinary user can run with our packages; skips without one."""
    candidates = [
        sys.executable,
        shutil.which(f"python3.{sys.version_info.minor}", path=os.defpath),
    ]
    for candidate in filter(None, candidates):
        with contextlib.suppress(PermissionError):
            probe = [candidate, "-c", "import crypto_pipeline.local"]
            found = subprocess.run(probe, user=user, env=environment, cwd="/", check=False)
            if found.returncode == 0:
                return candidate
    pytest.skip("no Python here that an ordinary user can run")


@needs_root
@pytest.mark.parametrize("user", [65534, 3456], ids=["with a name", "without a name"])
def test_an_ordinary_user_needs_no_root(open_folder, user):
    """Most machines; the user without a name is `docker run --user 3456`, which initdb refuses."""
    os.chown(open_folder, user, user)
    packages = [
        str(Path(crypto_pipeline.__file__).parents[1]),
        str(Path(psycopg.__file__).parents[1]),
    ]
    environment = {
        "PATH": os.defpath,
        "HOME": str(open_folder),
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    script = """if True:
        import sys, psycopg
        from pathlib import Path
        from crypto_pipeline.local import LocalPostgres
        from crypto_pipeline_tests.local.conftest import no_timescaledb
        for _ in range(2):
            with LocalPostgres(Path(sys.argv[1]), find=no_timescaledb) as info:
                with psycopg.connect(info.url("dagster")) as connection:
                    print(connection.execute("SELECT 1").fetchone())
    """
    done = subprocess.run(
        [python_of(user, environment), "-W", "error", "-c", script, open_folder / "home"],
        user=user,
        group=user,
        extra_groups=[],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"user namespaces are forbidden here: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "(1,)\n(1,)\n"), done.stderr
    assert {path.stat().st_uid for path in open_folder.rglob("*")} == {user}


def test_another_users_database_is_refused_clearly(tmp_path, monkeypatch):
    """The message names who owns it, not a permission deep in PostgreSQL's log."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    with pytest.raises(LocalServiceError, match="belongs to user id 99, and this is 1234"):
        privileges.choose_identity(owner=99, enter=tmp_path, read=[], run=["true"], env={})


def test_a_home_of_another_user_is_refused_clearly(tmp_path, monkeypatch):
    """A lock that may not be opened is no traceback."""
    from crypto_pipeline.local.processes import FileLock

    def forbidden(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", forbidden)
    with pytest.raises(LocalServiceError, match=r"cannot be locked.*run as the user who made it"):
        LocalPostgres(tmp_path).acquire()
