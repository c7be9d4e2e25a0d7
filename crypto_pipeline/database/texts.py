"""Texts from outside, made fit for a column."""

from __future__ import annotations


def representable(text: str) -> str:
    """The text with what PostgreSQL cannot hold, NUL and lone surrogates, spelled out."""
    return text.replace("\0", "\\u0000").encode(errors="backslashreplace").decode()


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters; an ellipsis tells that there were more."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
