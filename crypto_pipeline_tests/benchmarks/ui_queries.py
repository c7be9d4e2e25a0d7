"""The queries of Dagster's UI, taken from the installed webserver's own JavaScript."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import dagster_webserver

from crypto_pipeline.cli.webserver import Webserver

_DEFINITION = re.compile(r"\b(?:query|fragment) ([A-Z]\w*)(?:\(| on )")
_SPREAD = re.compile(r"\.\.\.\s*([A-Z]\w*)")
_EVENTS = ["MATERIALIZATION", "OBSERVATION", "FAILED_TO_MATERIALIZE"]

#: (asset, check or None, partition) → its state.
States = dict[tuple[str, str | None, str], str]


class AssetPage:
    """What the page of one asset asks for, all its tabs."""

    def __init__(self, webserver: Webserver, asset: str) -> None:
        self._webserver, self._asset = webserver, asset

    def seconds(self) -> dict[str, float]:
        """How long each query takes."""
        key = {"path": [self._asset]}
        checks = _answer(self._webserver, "AssetChecksQuery", assetKey=key)
        names = [check["name"] for check in _found(checks, "checks")]
        newest = _answer(self._webserver, "LatestAssetPartitionsQuery", assetKey=key, limit=10)
        partitions = next(_values(newest, "results"))
        queries: list[tuple[str, dict[str, Any]]] = [
            ("AssetViewDefinitionQuery", {}),
            ("PartitionHealthQuery", {}),
            ("RecentAssetEventsQuery", {"eventTypeSelectors": _EVENTS, "limit": 100}),
            ("AssetOverviewMetadataEventsQuery", {}),
            ("LatestAssetPartitionsQuery", {"limit": 120}),
            ("AssetPartitionEventsQuery", {"partitions": partitions}),
            ("AssetChecksQuery", {}),
            *(("AssetCheckPartitionHealthQuery", {"checkName": name}) for name in names),
        ]
        taken: dict[str, float] = {}
        for name, variables in queries:
            began = time.monotonic()
            _answer(self._webserver, name, assetKey=key, **variables)
            taken[name] = max(taken.get(name, 0.0), round(time.monotonic() - began, 3))
        return {**taken, "slowest": max(taken.values())}


def states(webserver: Webserver, assets: Sequence[str]) -> States:
    """The state of every partition of assets and their checks, as the UI colours it."""
    found: States = {}
    for asset in assets:
        key = {"path": [asset]}
        health = _answer(webserver, "PartitionHealthQuery", assetKey=key)
        found |= {
            (asset, None, partition): state
            for partition, state in _coloured(next(_values(health, "assetPartitionStatuses")))
        }
        checks = _answer(webserver, "AssetChecksQuery", assetKey=key)
        for check in _found(checks, "checks"):
            answer = _answer(
                webserver, "AssetCheckPartitionHealthQuery", assetKey=key, checkName=check["name"]
            )
            found |= {
                (asset, check["name"], partition): state
                for partition, state in _coloured(next(_values(answer, "partitionStatuses")))
            }
    return found


def _coloured(statuses: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each exchange and range of days in one colour: ranges come whole, so they compare whole."""
    from datetime import date, timedelta

    for span in statuses["ranges"]:
        first, last = (date.fromisoformat(span[f"primaryDim{end}Key"]) for end in ("Start", "End"))
        for n in range((last - first).days + 1):
            for state, exchanges in span["secondaryDim"].items():
                for exchange in exchanges:
                    yield f"{first + timedelta(days=n)}|{exchange}", state


def _answer(webserver: Webserver, name: str, **variables: Any) -> dict[str, Any]:
    return webserver.query(_document(name), **variables)


def _found(answer: object, key: str) -> list[dict[str, Any]]:
    return next(value for value in _values(answer, key) if isinstance(value, list))


def _values(answer: object, key: str) -> Iterator[Any]:
    """All that stands under a key, at any depth."""
    if isinstance(answer, dict):
        if key in answer:
            yield answer[key]
        for value in answer.values():
            yield from _values(value, key)
    elif isinstance(answer, list):
        for value in answer:
            yield from _values(value, key)


def _document(name: str) -> str:
    """A query with the fragments it uses."""
    definitions, wanted, texts = _definitions(), [name], {}
    while wanted:
        each = wanted.pop()
        if each not in texts:
            texts[each] = definitions[each]
            wanted += _SPREAD.findall(texts[each])
    return "\n".join(texts.values())


@cache
def _definitions() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in (Path(dagster_webserver.__file__).parent / "webapp" / "build").rglob("*.js"):
        script = path.read_text(encoding="utf-8", errors="replace")
        for match in _DEFINITION.finditer(script):
            depth, end = 0, script.index("{", match.end())
            while True:
                depth += {"{": 1, "}": -1}.get(script[end], 0)
                end += 1
                if depth == 0:
                    break
            found.setdefault(match.group(1), script[match.start() : end].replace("\\n", "\n"))
    return found
