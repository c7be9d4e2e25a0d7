"""Looking for what must not be there: secrets in any form, pickles."""

from __future__ import annotations

import html
import pickletools
import re
import warnings
from base64 import b64decode
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
from psycopg import sql

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")


def leaked(text: str, marks: Iterable[str]) -> set[str]:
    """The marks that stand in a text: plain, percent-encoded, in HTML, escaped, in base64."""
    readings = [text, unquote(unquote(text)), html.unescape(text), *_from_base64(text)]
    return {mark for mark in marks if any(mark in reading for reading in readings)}


def _from_base64(text: str) -> Iterator[str]:
    for run in _BASE64.findall(unquote(text)):
        for start in range(4):
            part = run[start:].replace("-", "+").replace("_", "/")
            yield b64decode(part[: len(part) // 4 * 4]).decode("latin-1")


def leaking_files(folder: Path, marks: Iterable[str]) -> dict[str, set[str]]:
    """The files below a folder that hold marks."""
    found = {
        str(path.relative_to(folder)): leaked(path.read_bytes().decode("latin-1"), marks)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: marks for name, marks in found.items() if marks}


def leaking_tables(url: str, marks: Iterable[str]) -> dict[str, set[str]]:
    """The tables of a database, all of their rows as text, that hold marks."""
    found = {}
    with psycopg.connect(url) as conn:
        tables = conn.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for name in tables:
            query = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(*name))
            text = "\n".join(row for (row,) in conn.execute(query).fetchall())
            found[".".join(name)] = leaked(text, marks)
    return {name: marks for name, marks in found.items() if marks}


def pickles(folder: Path) -> list[str]:
    """The files below a folder that can be read as a pickle from their first byte to their last."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and is_pickle(path.read_bytes())
    )


def is_pickle(content: bytes) -> bool:
    """Whether it reads as one from its first byte to its last."""
    try:
        with warnings.catch_warnings():
            # It warns of escapes in what only looks like a text of a pickle.
            warnings.simplefilter("ignore", DeprecationWarning)
            *_, (stop, _, position) = pickletools.genops(content)
    except Exception:  # noqa: BLE001 - whatever it stumbles on, it is no pickle
        return False
    return stop.name == "STOP" and position == len(content) - 1
