"""Taking credentials out of texts that are going to be shown."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from itertools import product
from typing import Final

#: Shorter ones are taken out as whole words only: ``uid: a`` must not make every text unreadable.
_ANYWHERE: Final = 6
#: Base64 that is known of a secret, in characters: shorter ones may be anything.
_BASE64_ANYWHERE: Final = 6
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_=-]*")
_USER_IN_URL: Final = re.compile(r"(:/{2,})[^/@\s\"'<>]+@")
_NAMED: Final = {"&": "amp", "<": "lt", ">": "gt", '"': "quot", "'": "apos", "/": "sol"}
_SPACE: Final = (
    r"(?:\s|\\{1,4}[nrtfv]|%(?:25){0,4}(?:20|0[9a-dA-D])|\+"
    r"|&#(?:x0{0,6}[9aAdD]|0{0,6}(?:9|10|13|32));){1,64}"
)


def redacted(text: str, secrets: Iterable[str]) -> str:
    """The text without the secrets and without what stands before the ``@`` of a URL.

    A secret is found in whatever form a library or an exchange may give it: each of its characters
    plain, percent-encoded (once or more often), as an HTML reference, escaped as in JSON or Python;
    its white space folded; and all of it in base64, also in the middle of other text, as a proxy's
    ``Basic`` credentials are.
    """
    text = without_user(text)
    for secret in secrets:
        if secret.strip():
            text = _pattern(secret).sub("***", text)
            for core in _in_base64(secret):
                text = _without_run(text, core)
    return text


def without_user(text: str) -> str:
    """The text with ``***`` for user and password of each URL in it."""
    return _USER_IN_URL.sub(r"\1***@", text)


@lru_cache(maxsize=256)
def _pattern(secret: str) -> re.Pattern[str]:
    """Every way to write the secret."""
    pattern = "".join(map(_any_form, re.split(r"(\s+|\\+)", secret)))
    if len(secret) < _ANYWHERE:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.compile(pattern)


def _any_form(text: str) -> str:
    if text.isspace():
        return _SPACE
    if text.startswith("\\"):
        return f"{_forms(text[0])}{{{len(text)},{len(text) * 4}}}"
    return "".join(map(_forms, text))


def _forms(character: str) -> str:
    """A character, or what stands for it in a URL, in HTML, in JSON or in Python.

    Each repetition has a bound: what an exchange answers must not take long to search.
    """
    code = ord(character)
    forms = [
        r"\\" if character == "\\" else r"\\{0,4}" + re.escape(character),
        *("".join(f"%(?:25){{0,4}}{_hex(byte)}" for byte in raw) for raw in _encoded(character)),
        f"&#0{{0,6}}{code};",
        f"&#[xX]0{{0,6}}{_hex(code)};",
        rf"\\{{1,4}}u{_hex(code, 4)}" if code < 0x1_0000 else re.escape(character),
        rf"\\{{1,4}}x{_hex(code)}" if code < 0x100 else re.escape(character),
    ]
    if character in _NAMED:
        forms.append(f"&{_NAMED[character]};")
    return f"(?:{'|'.join(dict.fromkeys(forms))})"


def _encoded(text: str) -> set[bytes]:
    """The text in UTF-8, and in Latin-1, in which ``Basic`` credentials are sent."""
    encoded = {text.encode(errors="surrogatepass")}
    with suppress(UnicodeEncodeError):
        encoded.add(text.encode("latin-1"))
    return encoded


def _hex(number: int, digits: int = 2) -> str:
    return "".join(
        f"[{digit}{digit.upper()}]" if digit.isalpha() else digit
        for digit in f"{number:0{digits}x}"
    )


@lru_cache(maxsize=256)
def _in_base64(secret: str) -> tuple[re.Pattern[str], ...]:
    """What base64 holds of the secret, whatever stands before and after it: one for each place."""
    if len(secret) < _ANYWHERE:
        return ()
    cores = []
    for raw, before in product(_encoded(secret), range(3)):
        whole = b64encode(bytes(before) + raw).decode().rstrip("=")
        loose = (before + len(raw)) % 3 != 0  # the last character holds bits of what follows
        core = whole[(0, 2, 3)[before] : len(whole) - loose]
        if len(core) >= _BASE64_ANYWHERE:
            forms = {"+": r"(?:[+-]|%2[bB])", "/": r"(?:[/_]|%2[fF]|\\/)"}
            cores.append(re.compile("".join(forms.get(letter, letter) for letter in core)))
    return tuple(cores)


def _without_run(text: str, core: re.Pattern[str]) -> str:
    """The text without each run of base64 that holds the core: its ends are of the secret, too."""
    parts, done = [], 0
    for found in core.finditer(text):
        if found.start() < done:
            continue
        left = _BASE64.match(text[done : found.start()][::-1])
        right = _BASE64.match(text, found.end())
        start = found.start() - (left.end() if left else 0)
        parts += [text[done:start], "***"]
        done = right.end() if right else found.end()
    return "".join([*parts, text[done:]])
