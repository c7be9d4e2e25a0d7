"""The Dagster webserver's GraphQL, asked as its UI asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import requests

from crypto_pipeline.errors import LocalServiceError

_LOCATIONS = """
query { workspaceOrError { __typename ... on Workspace { locationEntries { name loadStatus
  locationOrLoadError { __typename ... on PythonError { message } } } } } }
"""
_RELOAD = """
mutation ($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }
"""
_LAUNCH_BACKFILL = """
mutation ($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
  __typename
  ... on LaunchBackfillSuccess { backfillId }
  ... on PythonError { message }
  ... on PartitionKeysNotFoundError { message }
  ... on UnauthorizedError { message }
} }
"""


class Webserver:
    """A running dagster-webserver at an address like ``http://127.0.0.1:3000``."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """The ``data`` of an answer.

        Raises:
            LocalServiceError: no answer, or errors in it.
        """
        try:
            answer = requests.post(
                f"{self.url}/graphql", json={"query": text, "variables": variables}, timeout=30
            ).json()
        except (requests.RequestException, ValueError) as error:
            raise LocalServiceError(
                f"The Dagster webserver at {self.url} does not answer: {error}.", rerun_helps=True
            ) from error
        if answer.get("errors"):
            raise LocalServiceError(f"The Dagster webserver refuses: {answer['errors']}.")
        data: dict[str, Any] = answer["data"]
        return data

    def wait_ready(self, *, timeout: float, alive: Callable[[], bool]) -> None:
        """Wait until it answers and the code location is loaded.

        Raises:
            LocalServiceError: it does not come up, or the code location does not load.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                entries = self.query(_LOCATIONS)["workspaceOrError"]["locationEntries"]
                if entries and all(entry["loadStatus"] == "LOADED" for entry in entries):
                    break
            except LocalServiceError:
                if not alive() or time.monotonic() > deadline:
                    raise
            if not alive() or time.monotonic() > deadline:
                raise LocalServiceError(
                    f"Dagster did not come up at {self.url} in {timeout:.0f} s."
                )
            time.sleep(0.3)
        for entry in entries:
            loaded = entry["locationOrLoadError"]
            if loaded["__typename"] == "PythonError":
                raise LocalServiceError(f"The definitions do not load: {loaded['message']}")

    def broken_locations(self) -> list[str]:
        """Names of the code locations that are not loaded: broken code, or a dead code server.

        Raises:
            LocalServiceError: no answer, or errors in it.
        """
        entries = self.query(_LOCATIONS)["workspaceOrError"].get("locationEntries", [])
        return [
            str(entry["name"])
            for entry in entries
            if (entry["locationOrLoadError"] or {}).get("__typename") == "PythonError"
        ]

    def reload(self, location: str) -> None:
        """Load a code location again, which starts its code server anew.

        A code server that was killed is not started again by anything else.

        Raises:
            LocalServiceError: no answer, or errors in it.
        """
        self.query(_RELOAD, name=location)

    def launch_backfill(self, assets: Sequence[str], partitions: Sequence[str]) -> str:
        """Launch a backfill of these assets and partitions; its id.

        Raises:
            LocalServiceError: Dagster refuses it.
        """
        answer = self.query(
            _LAUNCH_BACKFILL,
            params={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": list(partitions),
            },
        )["launchPartitionBackfill"]
        if "backfillId" not in answer:
            raise LocalServiceError(f"Dagster refuses the backfill: {answer}.")
        return str(answer["backfillId"])
