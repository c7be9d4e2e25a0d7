"""Secrets are taken out of a text however they are written there, and nothing else is."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.redaction import redacted, without_user

SEARCHED = settings(derandomize=True, database=None, deadline=None, max_examples=200)
WAYS = st.sampled_from(["plain", "%", "%25", "&#", "&#x", "\\u", "\\"])


def written(character: str, way: str) -> str:
    """One character as some encoder may write it."""
    if way in ("%", "%25"):
        return "".join(f"{way}{byte:02X}" for byte in character.encode())
    if way in ("&#", "&#x"):
        return f"&#{ord(character):{'d' if way == '&#' else 'x'}};".replace("&#", way)
    if way == "\\u" and ord(character) < 0x1_0000:
        return f"\\u{ord(character):04x}"
    return f"\\{character}" if way == "\\" and not character.isalnum() else character


@st.composite
def secrets_and_writings(draw: st.DrawFn) -> tuple[str, str]:
    alphabet = st.characters(
        min_codepoint=0x21, max_codepoint=0x24F, exclude_categories=["Zs", "Cc"]
    )
    secret = draw(st.text(alphabet, min_size=6, max_size=24))
    return secret, "".join(written(character, draw(WAYS)) for character in secret)


@SEARCHED
@given(secrets_and_writings())
def test_each_character_may_be_written_in_a_way_of_its_own(pair: tuple[str, str]) -> None:
    """yarl encodes some characters of a URL and leaves others, gateways others again."""
    secret, writing = pair
    assert redacted(f"<<{writing}>>", [secret]) == "<<***>>"


@SEARCHED
@given(
    st.text(st.characters(max_codepoint=0x24F), min_size=9, max_size=40).filter(str.strip),
    st.text(max_size=5),
    st.text(max_size=5),
    st.sampled_from(["utf-8", "latin-1"]),
    st.sampled_from([b64encode, urlsafe_b64encode]),
)
def test_no_base64_holds_a_secret(
    secret: str, before: str, after: str, encoding: str, encode: object
) -> None:
    """``Basic`` credentials are the user, a colon and the password: the secret stands anywhere."""
    raw = f"{before}{secret}{after}".encode(encoding, "ignore")
    if secret.encode(encoding, "ignore").decode(encoding) != secret:
        return
    text = f"Authorization: Basic {encode(raw).decode()}"  # type: ignore[operator]
    assert redacted(text, [secret]) == "Authorization: Basic ***"


@SEARCHED
@given(st.text(max_size=200), st.lists(st.text(max_size=3), max_size=3))
def test_texts_without_the_secret_stay(text: str, noise: list[str]) -> None:
    """A message must still say what happened."""
    secret = "S3CRET-which-no-text-has"
    assert redacted(text, [secret]) == without_user(text)


def test_white_space_may_be_folded() -> None:
    """A PEM key on one line, in JSON, in a form."""
    key = "-----BEGIN-----\nabc\n-----END-----"
    for text in (key, key.replace("\n", " "), key.replace("\n", "+"), json.dumps(key), repr(key)):
        assert "abc" not in redacted(text, [key])


@pytest.mark.parametrize(
    "text", ["https://user:pw@host/x", "redis://:pw@host", "x s3://key:pw@bucket y", "a://pw@b"]
)
def test_the_user_of_a_url_is_never_shown(text: str) -> None:
    """Also of one that no configuration named: a proxy's of the environment, a redirect's."""
    assert "pw" not in redacted(text, [])
    assert "://***@" in redacted(text, [])
