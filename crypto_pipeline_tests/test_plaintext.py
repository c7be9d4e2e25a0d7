"""What comes from outside cannot command a terminal or a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_pipeline.cli.status import _print_table
from crypto_pipeline.config.load import load_config
from crypto_pipeline.errors import ConfigError, CryptoPipelineError
from crypto_pipeline.plaintext import in_markdown, shown

SEARCHED = settings(derandomize=True, database=None, deadline=None, max_examples=300)


@SEARCHED
@given(st.text())
def test_nothing_that_is_shown_is_a_command(text: str) -> None:
    """No escape sequence, no carriage return that overwrites a line, no text turned around."""
    assert all(c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f") for c in shown(text))
    shown(text).encode()
    assert not set(shown(text)) & set("\u202e\u2066\u200f\u2028")


@pytest.mark.parametrize(
    "text", ["BTC/USDT", "ETH/USD:ETH-240628", "1000SHIB/BUSD", "é中/USD", "a line\n\tanother"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert shown(text) == text


def test_an_error_carries_no_command() -> None:
    """Exchanges answer what they like, and errors quote it, to terminals and to the event log."""
    error = CryptoPipelineError("bad \x1b[2J\x1b]0;title\x07 \r\u202e", hint="do \x9b31m this")
    assert str(error) == ("bad \\x1b[2J\\x1b]0;title\\x07 \\r\\u202e What to do: do \\x9b31m this")
    assert "\x1b" not in repr(error)


def test_a_mistake_in_the_pipeline_file_carries_no_command(tmp_path: Path) -> None:
    """Its keys stand in the message, as they stand in a file that somebody may have sent."""
    path = tmp_path / "pipeline.yaml"
    path.write_text('exchanges: {binance: {"a\\e[2J\\u202e": 1, symbols: ["\\e]0;x\\a"]}}\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path, {})
    assert "\\x1b[2J\\u202e: there is no such key" in str(caught.value)
    assert shown(str(caught.value)) == str(caught.value)


def test_a_symbol_is_no_markup_of_the_tables_library(capsys: pytest.CaptureFixture[str]) -> None:
    """`[/X]` ended `status` with an error, `[RED]` was not shown at all."""
    _print_table([{"symbol": "[/X]/[RED]:BOMB:"}])
    assert "[/X]/[RED]:BOMB:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "![x](https://evil.example/pixel)",
        "[click](javascript:alert)",
        "<img src=x onerror=alert(1)>",
        "https://evil.example/x",
        "www.evil.example",
        "# heading",
        "`code`",
        "a|b\n-|-",
        "&lt;",
    ],
)
def test_markdown_is_shown_and_not_rendered(text: str) -> None:
    """The UI renders descriptions as Markdown: an image would be fetched by whoever looks."""
    escaped = in_markdown(text)
    bare = re.sub(r"\\.", "", escaped)
    assert not set(bare) & set("`*_[]()<>#!|&@\n")
    assert "://" not in escaped
    assert "www." not in escaped
