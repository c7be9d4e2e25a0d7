"""Files of the lake: replaced as a whole, or as they were."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from crypto_pipeline.errors import LakeError
from crypto_pipeline.lake.storage import LakeStorage

NAME = "raw/exchange=binance/date=2024-03-15/candles.parquet"


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


@pytest.fixture(params=["path", "file://", "memory://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A lake in each kind of place that needs no network."""
    return {
        "path": str(tmp_path / "la ke"),
        "file://": f"file://{tmp_path}/lake",
        "memory://": f"memory://{uuid4().hex}/lake",
    }[str(request.param)]


def test_a_file_is_written_replaced_read_and_removed(url: str) -> None:
    """The same on a folder and on any fsspec URL; a file that is not there is None, no error."""
    storage = LakeStorage(url)
    assert storage.read(NAME) is None
    storage.remove(NAME)
    for content in (b"one", b"", b"\0" * 100_000, b"two"):
        storage.write(NAME, content)
        assert LakeStorage(url).read(NAME) == content
    assert LakeStorage(f"{url}/").read(NAME) == b"two"
    assert storage.where(NAME).endswith(
        f"/lake/{NAME}".replace("/lake", "" if " " in url else "/lake")
    )
    storage.remove(NAME)
    assert storage.read(NAME) is None


def test_where_can_be_opened_by_others(url: str) -> None:
    """The address in a run's metadata is the one a reader needs."""
    storage = LakeStorage(url)
    storage.write(NAME, b"content")
    with fsspec.open(storage.where(NAME)) as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("url", ["nosuch://x/y", "s3://bucket/lake"])
def test_a_url_of_an_unknown_kind_is_refused(url: str) -> None:
    """``s3://`` needs a package of its own: its name stands in the message."""
    try:
        import s3fs  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("s3fs is installed")
    with pytest.raises(LakeError, match="CRYPTO_PIPELINE_LAKE") as caught:
        LakeStorage(url)
    assert url in str(caught.value)


def test_a_store_that_raises_errors_of_its_own_is_a_lake_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """botocore's NoCredentialsError is no OSError: runs ended in a bare traceback."""
    storage = LakeStorage("memory://errors")

    class NoCredentialsError(Exception):
        pass

    def fail(*arguments: object, **named: object) -> None:
        raise NoCredentialsError

    for name in ("cat_file", "pipe_file", "rm_file"):
        monkeypatch.setattr(storage._fs, name, fail)
    for call in (
        lambda: storage.read("x"),
        lambda: storage.write("x", b""),
        lambda: storage.remove("x"),
    ):
        with pytest.raises(LakeError, match=r"NoCredentialsError.*credentials") as caught:
            call()
        assert caught.value.rerun_helps


def test_a_folder_in_the_files_place_is_a_lake_error(tmp_path: Path) -> None:
    """Whatever stands there, the message names it and the old state stands."""
    (tmp_path / "x").mkdir()
    storage = LakeStorage(str(tmp_path))
    with pytest.raises(LakeError, match=re.escape(f"{tmp_path}/x cannot be read")):
        storage.read("x")
    with pytest.raises(LakeError, match="what was there before stands"):
        storage.write("x", b"content")
    assert (tmp_path / "x").is_dir()
    assert temporaries(tmp_path) == []


def test_a_lake_that_is_a_file_is_a_lake_error(tmp_path: Path) -> None:
    """``CRYPTO_PIPELINE_LAKE`` set to a file."""
    (tmp_path / "lake").write_text("")
    with pytest.raises(LakeError, match="cannot be written"):
        LakeStorage(str(tmp_path / "lake")).write(NAME, b"content")


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """A real one, 200 kB large: the error says so, and space that is freed can be used again."""
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mount],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        storage = LakeStorage(str(mount))
        storage.write(NAME, b"old" * 10_000)
        with pytest.raises(LakeError, match="No space left") as caught:
            storage.write(NAME, b"new" * 100_000)
        assert caught.value.rerun_helps
        assert "free space" in str(caught.value)
        assert storage.read(NAME) == b"old" * 10_000
        assert temporaries(mount) == []
        storage.write(NAME, b"new" * 10_000)
        assert storage.read(NAME) == b"new" * 10_000
    finally:
        subprocess.run(["umount", mount], check=True)


_WRITER = """
    import sys
    from crypto_pipeline.lake.storage import LakeStorage
    storage = LakeStorage(sys.argv[1])
    number = 0
    while True:
        number += 1
        storage.write(sys.argv[2], str(number % 10).encode() * 3_000_000)
        if number == 1:
            print("running", flush=True)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that replaces a 3 MB file of one repeated digit over and over."""
    command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(tmp_path), NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


def _is_whole(content: bytes | None) -> bool:
    return content is not None and len(content) == 3_000_000 and len(set(content)) == 1


def test_no_reader_ever_sees_a_part_of_a_file(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Readers take no lock: a file that is being replaced is the old one or the new one."""
    del writer
    storage = LakeStorage(str(tmp_path))
    digits = set()
    deadline = time.monotonic() + 60
    while len(digits) < 10 and time.monotonic() < deadline:
        content = storage.read(NAME)
        assert _is_whole(content)
        digits.add(content[:1] if content else b"")
    assert len(digits) == 10


def test_a_writer_that_is_killed_leaves_a_whole_file(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    """``kill -9`` in mid-write; what it left is removed by the next write, what lives is not."""
    storage = LakeStorage(str(tmp_path))
    folder = (tmp_path / NAME).parent
    deadline = time.monotonic() + 10
    while not temporaries(folder) and time.monotonic() < deadline:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert _is_whole(storage.read(NAME))
    old = time.time() - 60
    for left in [*temporaries(folder), folder / ".candles.parquet.0123.tmp"]:
        left.write_bytes(b"half a fi")
        os.utime(left, (old, old))
    living = folder / ".candles.parquet.4567.tmp"
    with living.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as a writer that was stopped for long holds it
        os.utime(living, (old, old))
        storage.write(NAME, b"7" * 3_000_000)
        assert storage.read(NAME) == b"7" * 3_000_000
        assert temporaries(folder) == [living]


def test_writers_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    """Each has a temporary file of its own: the last one stands, whole."""
    storage = LakeStorage(str(tmp_path))
    threads = [
        threading.Thread(
            target=lambda n=number: [
                storage.write(NAME, str(n).encode() * 3_000_000) for _ in range(3)
            ]
        )
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _is_whole(storage.read(NAME))
    assert temporaries(tmp_path) == []


def test_an_interrupted_write_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is no OSError: the temporary file goes, and the interrupt goes on."""
    storage = LakeStorage(str(tmp_path))
    storage.write(NAME, b"old")

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.write(NAME, b"new")
    assert storage.read(NAME) == b"old"
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("root", ["folder", "memory"])
@pytest.mark.parametrize(
    "name",
    [
        *("../out", "a/../../out", "/etc/passwd", "a//b", "", ".", "a/.", "../../lake-2/x"),
        *("a\\..\\b", "a\0b", "a\nb", "C:x", "s3://bucket/x", "a?versionId=1", "a#b", "*", "é"),
    ],
)
def test_no_name_leads_out_of_the_lake(tmp_path: Path, root: str, name: str) -> None:
    """Nor to another object of a store: whoever made the name, it is one below the root."""
    (tmp_path / "out").write_bytes(b"not ours")
    storage = LakeStorage(str(tmp_path / "lake") if root == "folder" else "memory://names/lake")
    for call in (storage.read, storage.remove, storage.where, lambda n: storage.write(n, b"x")):
        with pytest.raises(LakeError, match="is no name of a file in the lake"):
            call(name)
    assert (tmp_path / "out").read_bytes() == b"not ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("kind", ["memory", "nosuch", "ftp"])
def test_credentials_of_the_lakes_url_are_never_shown(kind: str) -> None:
    """Where a file is stands in the metadata of every partition, and in every error."""
    import traceback

    url = f"{kind}://user:FAKE-LAKE-KEY@127.0.0.1:9/lake"
    if kind == "memory":
        shown = LakeStorage(url).where("a/b")
        assert shown.endswith("/lake/a/b")
    else:
        with pytest.raises(LakeError, match="cannot be opened") as caught:
            LakeStorage(url)
        shown = "".join(traceback.format_exception(caught.value))
    assert "FAKE-LAKE-KEY" not in shown
