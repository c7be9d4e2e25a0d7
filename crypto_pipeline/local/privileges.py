"""Running PostgreSQL as an ordinary user when we are root, which PostgreSQL refuses.

As an ordinary user there is nothing to do. As root, the server gets a high user id that has no
name on this machine (``useradd`` would change the system, ``nobody`` is shared with other services).
That user may be kept out by a parent directory only root can enter (``/root``, ``mktemp -d``, a
private checkout), which holds for the home, for the PostgreSQL installation and for the cache.
So these ways are tried for real, in this order, and the first that works is taken:

1. the plain user id: enough where every parent directory is open;
2. the same with the capability to read and search everywhere (``CAP_DAC_READ_SEARCH``);
3. the same with ``CAP_DAC_OVERRIDE``, which Docker grants by default where it does not grant 2.
   It can write everywhere too, as anything else we run as root can; so only where 2 is not to be
   had;
4. a user namespace in which our own id goes by another number: where no other id can be taken
   (rootless containers with a single one). Docker's default seccomp profile forbids it.

``initdb`` alone wants a user with a *name*, so it runs as ``nobody`` (or any other named one) and
its files are given to the server's user afterwards.

The data directory's owner decides at later starts, so that a way once taken is kept.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from crypto_pipeline.errors import LocalServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# Reserved by Debian's policy and above what useradd hands out; below 2**16, where id ranges of
# containers often end.
FIRST_SERVER_UID = 52718
PROBE_SECONDS = 20.0

# cd, cat and exec tell whether a directory can be entered, a file read and a program run, by doing
# it: mode bits alone do not know of ACLs, mount options and security modules.
PROBE_SCRIPT = """
cd "$1" || exit 1; shift
while [ "$1" != -- ]; do cat "$1" >/dev/null || exit 1; shift; done; shift
exec "$@"
"""


@dataclass(frozen=True)
class Identity:
    """Who a server process runs as, and how it gets to be that.

    Attributes:
        uid: user and group id to change to; None keeps ours.
        capability: the one capability to keep across that change.
        namespace_uid: number that our own id goes by inside a user namespace.
    """

    uid: int | None = None
    capability: str | None = None
    namespace_uid: int | None = None

    @property
    def popen_uid(self) -> int | None:
        """User and group id that ``Popen`` is to set: ``setpriv`` does it where it keeps more."""
        return None if self.capability else self.uid

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` as this identity."""
        prefix: list[str] = []
        if self.capability:
            prefix = [
                "setpriv",
                *(f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"),
                *(f"--inh-caps=-all,+{self.capability}", f"--ambient-caps=-all,+{self.capability}"),
                "--no-new-privs",
            ]
        elif self.namespace_uid is not None:
            number = self.namespace_uid
            prefix = ["unshare", "--user", f"--map-user={number}", f"--map-group={number}"]
        return [*prefix, *argv]

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start ``argv`` as this identity, with nothing of our environment, in a session of its own."""
        uid = self.popen_uid
        return subprocess.Popen(
            self.command(argv),
            user=uid,
            group=uid,
            extra_groups=None if uid is None else (),
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )

    def own(self, tree: Path) -> None:
        """Give a tree of files to this identity."""
        if self.uid is None:
            return
        os.chown(tree, self.uid, self.uid)
        for folder, folders, files in os.walk(tree):
            for name in (*folders, *files):
                os.chown(os.path.join(folder, name), self.uid, self.uid, follow_symlinks=False)  # noqa: PTH118

    def for_initdb(self) -> Identity:
        """The identity with a name, which ``initdb`` looks up."""
        if self.uid is not None:
            return replace(self, uid=_named_uid())
        if self.namespace_uid is None and not _has_name(os.geteuid()):
            return Identity(namespace_uid=_named_uid())
        return self


def choose_identity(
    *,
    owner: int | None,
    enter: Path,
    read: Sequence[Path],
    run: Sequence[str],
    env: Mapping[str, str],
) -> Identity:
    """The first identity that can enter, read and run what the server needs.

    Args:
        owner: user id of the data directory; None if there is none yet.
        enter: directory the server must be able to enter.
        read: files it must be able to read.
        run: a harmless command of the server's program.
        env: environment to run it in.
    """
    if os.geteuid() != 0:
        if owner not in (None, os.geteuid()):
            msg = f"The database in {enter} belongs to user id {owner}, and this is {os.geteuid()}."
            raise LocalServiceError(
                msg, hint="run as the user who made it, or set CRYPTO_PIPELINE_HOME elsewhere."
            )
        return Identity()
    tried: list[str] = []
    for identity in _identities_for_root(owner):
        problem = _probe(identity, enter=enter, read=read, run=run, env=env)
        if problem is None:
            return identity
        tried.append(f"{identity}: {problem}")
    raise LocalServiceError(
        "PostgreSQL does not run as root, and no ordinary user could be found that can use "
        f"{enter} and {run[0]}. Tried: " + "; ".join(tried),
        hint="run as an ordinary user, or set CRYPTO_PIPELINE_HOME to a directory all may enter.",
    )


def _identities_for_root(owner: int | None) -> Iterator[Identity]:
    if owner != 0:
        uid = _unnamed_uid() if owner is None else owner
        yield Identity(uid=uid)
        if shutil.which("setpriv"):
            yield Identity(uid=uid, capability="dac_read_search")
            yield Identity(uid=uid, capability="dac_override")
    if owner in (None, 0) and shutil.which("unshare"):
        yield Identity(namespace_uid=_named_uid())


def _probe(
    identity: Identity,
    *,
    enter: Path,
    read: Sequence[Path],
    run: Sequence[str],
    env: Mapping[str, str],
) -> str | None:
    """None if the identity can do what is needed, else what it said."""
    argv = ["sh", "-c", PROBE_SCRIPT, "probe", str(enter), *map(str, read), "--", *run]
    try:
        with identity.popen(
            argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            output, _ = process.communicate(timeout=PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if process.returncode == 0 else output.decode(errors="replace").strip()


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _unnamed_uid() -> int:
    return next(
        uid for uid in range(FIRST_SERVER_UID, FIRST_SERVER_UID + 1000) if not _has_name(uid)
    )


def _named_uid() -> int:
    accounts = {account.pw_name: account.pw_uid for account in pwd.getpwall() if account.pw_uid}
    if not accounts:
        msg = "initdb needs a user with a name besides root, and this machine has none."
        raise LocalServiceError(msg, hint="add one (useradd), or run as an ordinary user.")
    return accounts.get("nobody", min(accounts.values()))
