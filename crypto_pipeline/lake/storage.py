"""Where the lake's files are, and how one is replaced so that no reader ever sees half of it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from crypto_pipeline.errors import CryptoPipelineError, LakeError
from crypto_pipeline.redaction import without_user

#: Says by an error that a file must not be replaced after all.
LastCheck = Callable[[], object]

#: One step of a name below the root; ``.`` and ``..`` lead elsewhere, a separator adds steps.
_STEP: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.=-]+")

_UNFINISHED: Final = ".tmp"
#: Between making a file and claiming it there is a moment.
_ABANDONED_SECONDS: Final = 10.0


class LakeStorage:
    """Whole files under one root: a local folder or any fsspec URL (``s3://bucket/lake``)."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise LakeError(
                f"the lake {without_user(url)} cannot be opened: {without_user(str(error))}.",
                hint="install the package fsspec names for this kind of URL, or correct"
                " CRYPTO_PIPELINE_LAKE.",
            ) from None  # its text may hold the URL's credentials
        except Exception as error:  # noqa: BLE001 - some stores connect at once
            reason = without_user(str(error) or repr(error))
            raise LakeError(
                f"the lake {without_user(url)} cannot be opened: {reason}.",
                hint="see that the store can be reached, and to its credentials.",
                rerun_helps=True,
            ) from None

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is none.

        Raises:
            LakeError: it cannot be read.
        """
        try:
            content: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001 - stores raise errors of their own beyond OSError
            raise self._failed(name, "read", error) from self._cause(error)
        return content

    def write(self, name: str, content: bytes, *, last_check: LastCheck = lambda: None) -> None:
        """Replace a file as a whole, or leave it as it was.

        Locally: a temporary file in the same folder, flushed to the disk, then renamed. Object
        stores replace objects atomically by themselves.

        Args:
            name: the file's.
            content: all of it.
            last_check: called when all is ready, just before the file is replaced; what it raises
                leaves the file as it was.

        Raises:
            LakeError: it cannot be written (disk full, no permission, store away).
        """
        path = self._path(name)
        try:
            if isinstance(self._fs, LocalFileSystem):
                _replace(Path(path), content, last_check=last_check)
            else:
                last_check()
                self._fs.pipe_file(path, content)
        except CryptoPipelineError:  # of the last check
            raise
        except Exception as error:  # noqa: BLE001 - stores raise errors of their own beyond OSError
            raise self._failed(name, "written", error) from self._cause(error)

    def version(self, name: str) -> str | None:
        """What changes whenever the file is replaced; None if there is none, or nobody can tell."""
        try:
            return str(self._fs.ukey(self._path(name)))
        except Exception:  # noqa: BLE001 - whoever compares versions takes None for a change
            return None

    def remove(self, name: str) -> None:
        """Remove a file if it is there.

        Raises:
            LakeError: it cannot be removed.
        """
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as error:  # noqa: BLE001 - stores raise errors of their own beyond OSError
            raise self._failed(name, "removed", error) from self._cause(error)

    def _cause(self, error: Exception) -> Exception | None:
        """The error, unless its text may hold the URL's credentials."""
        return error if without_user(self.url) == self.url else None

    def _failed(self, name: str, what: str, error: Exception) -> LakeError:
        """Any error: beyond OSError, every kind of store raises its own."""
        stands = "; what was there before stands" if what == "written" else ""
        reason = without_user(str(error) or repr(error))
        return LakeError(
            f"{self.where(name)} cannot be {what}: {reason}{stands}.",
            hint="see to free space and permissions of the lake, and to the store's credentials.",
            rerun_helps=True,
        )

    def where(self, name: str) -> str:
        """The file's full address, for metadata and messages; without credentials."""
        return without_user(
            str(self._fs.unstrip_protocol(self._path(name)))
            if "://" in self.url
            else self._path(name)
        )

    def _path(self, name: str) -> str:
        """Where a file is. No name leads out of the lake, whoever made it."""
        if not all(map(_STEP.fullmatch, name.split("/"))):
            raise LakeError(
                f"{name!r} is no name of a file in the lake {without_user(self.url)}.",
                hint="name exchanges as pipeline.yaml may name them: letters, digits, _ and -.",
            )
        return f"{self._root.rstrip('/')}/{name}"


def _replace(path: Path, content: bytes, *, last_check: LastCheck) -> None:
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}{_UNFINISHED}")
    try:
        with temporary.open("wb") as file:
            _claim(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            last_check()
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    _remove_unfinished(path)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents so that a power cut cannot take them away again."""
    made = []
    while not folder.is_dir():
        made.append(folder)
        folder = folder.parent
    for each in reversed(made):
        each.mkdir(exist_ok=True)
        _sync(each.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _claim(descriptor: int) -> bool:
    """Take the lock by which a file that is being written is told from one that a kill left."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; or a file system without locks, where nothing is ever claimed
        return False
    return True


def _remove_unfinished(path: Path) -> None:
    """Remove what writers of this file that were killed left beside it, some time before it."""
    for other in path.parent.glob(f".{path.name}.*{_UNFINISHED}"):
        with suppress(OSError), other.open("rb") as file:
            age = path.stat().st_mtime - os.fstat(file.fileno()).st_mtime
            if age > _ABANDONED_SECONDS and _claim(file.fileno()):
                other.unlink()
