"""The error tree holds its promise wherever an error is made: what to do, and whether a rerun helps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import crypto_pipeline
from crypto_pipeline import errors
from crypto_pipeline.errors import ConfigError, CryptoPipelineError

PACKAGE = Path(crypto_pipeline.__file__).parent
TREE = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, CryptoPipelineError)
}
#: Base classes say nothing by themselves of whether a rerun helps.
ABSTRACT = {"CryptoPipelineError", "ExchangeError"}


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield str(path.relative_to(PACKAGE)), text, ast.parse(text)


def made() -> Iterator[tuple[str, ast.Call, str]]:
    """Every place where an error of the tree is made, raised there or not."""
    for name, _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called in TREE and name != "errors.py":
                    yield f"{name}:{node.lineno}", node, called


def test_every_error_says_what_to_do() -> None:
    """By a hint where it is made, or by its class; a ConfigError's message is what to do."""
    silent = [
        where
        for where, call, kind in made()
        if not any(keyword.arg == "hint" for keyword in call.keywords)
        and TREE[kind].what_to_do is None
        and kind != ConfigError.__name__
    ]
    assert silent == []
    assert len(list(made())) > 60  # the walk finds them


def test_every_error_says_whether_a_rerun_helps() -> None:
    """A class of its own answers it; the bases, which cannot, are only made with an answer or as
    the last word of a command."""
    assert {name: kind.rerun_helps for name, kind in TREE.items()} == {
        "CryptoPipelineError": False,
        "ConfigError": False,
        "ExchangeError": False,
        "ExchangeUnavailable": True,
        "BadAnswer": True,
        "RateLimited": True,
        "ExchangeBlocked": False,
        "RequestRefused": False,
        "CollectionFailed": True,
        "LakeError": False,
        "DatabaseError": True,
        "LocalServiceError": False,
    }
    assert [
        where for where, _, kind in made() if kind in ABSTRACT and not where.startswith("cli/")
    ] == []


def test_every_broad_except_has_its_reason_beside_it_or_raises_again() -> None:
    """A handler for everything hides what it was not written for."""
    unexplained = []
    for name, text, tree in sources():
        lines = text.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)] if node.type else [""]  # fmt: skip
            if not {"Exception", "BaseException", ""} & set(kinds):
                continue
            again = any(isinstance(n, ast.Raise) and n.exc is None for n in node.body)
            comment = lines[node.lineno - 1].partition("#")[2]
            reason = re.sub(r"noqa: [A-Z0-9, ]+", "", comment).strip(" -")
            if not again and not reason:
                unexplained.append(f"{name}:{node.lineno}")
    assert unexplained == []


@pytest.mark.parametrize("kind", TREE.values())
def test_a_class_speaks_unless_the_error_does(kind: type[CryptoPipelineError]) -> None:
    """The hint of an error goes before its class's."""
    assert str(kind("It broke.")) == (
        f"It broke. What to do: {kind.what_to_do}" if kind.what_to_do else "It broke."
    )
    assert str(kind("It broke.", hint="mend it.")) == "It broke. What to do: mend it."
    assert kind("It broke.", rerun_helps=True).rerun_helps
    assert not kind("It broke.", rerun_helps=False).rerun_helps
