"""Texts from outside, made fit to be shown: on a terminal, in a log, in the UI."""

from __future__ import annotations

import re
from typing import Final

#: What a terminal obeys instead of showing it, what turns the direction of the text around it, and
#: what no encoder takes. Line feeds and tabs stay.
_COMMANDS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

#: What begins something in GitHub's Markdown, which the UI renders in descriptions. No symbol of an
#: exchange known to us holds any of them.
_MARKDOWN: Final = re.compile(r"[\\`*_{}\[\]()<>#!|~&@]|/(?=/)|\.(?<=www\.)", re.IGNORECASE)


def shown(text: str) -> str:
    """The text with its control characters spelled out: those that a terminal would obey."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_markdown(text: str) -> str:
    """The text as Markdown that shows exactly it, on one line."""
    line = " ".join(shown(text).split())
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", line)
