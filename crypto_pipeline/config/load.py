"""Reading ``pipeline.yaml``: ``${NAME}`` from the environment, and mistakes told in one message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.errors import ConfigError

_VARIABLE: Final = re.compile(r"\$(?:\$|\{([^}]*)\})")
_SECRET_KEYS: Final = {
    "apikey", "secret", "password", "token", "privatekey", "walletaddress", "uid", "login", "twofa",
}  # fmt: skip


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, where it came from, and the values no output may ever show."""

    pipeline: PipelineConfig
    path: Path
    secrets: tuple[str, ...]


def load_config(path: Path, environment: Mapping[str, str]) -> LoadedConfig:
    """Read and check the file.

    Raises:
        ConfigError: naming the file, the key, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file.",
            hint="create it (README.md shows one) or name another with CRYPTO_PIPELINE_CONFIG.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}.") from error
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no mapping.", hint="start it with the key exchanges.")
    document = _interpolated(document, environment, path)
    try:
        pipeline = PipelineConfig.model_validate(document)
    except ValidationError as error:
        lines = [f"{path}: {line}" for line in map(_told, error.errors())]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    return LoadedConfig(pipeline, path, tuple(sorted(set(_secrets(document)), key=len)[::-1]))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys: an exchange would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - yaml's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.MarkedYAMLError(
                    problem="a key is not plain text", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands twice in one mapping",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _interpolated(document: Any, environment: Mapping[str, str], path: Path) -> Any:
    missing: list[tuple[str, str]] = []

    def value_of(match: re.Match[str], where: str) -> str:
        name = match[1]
        if name is None:
            return "$"
        if name not in environment:
            missing.append((where, name))
            return ""
        return environment[name]

    def walk(node: Any, where: str) -> Any:
        if isinstance(node, dict):
            return {
                walk(k, where): walk(v, f"{where}.{k}" if where else str(k))
                for k, v in node.items()
            }
        if isinstance(node, list):
            return [walk(item, f"{where}[{index}]") for index, item in enumerate(node)]
        if isinstance(node, str):
            return _VARIABLE.sub(lambda match: value_of(match, where), node)
        return node

    result = walk(document, "")
    if missing:
        raise ConfigError(
            "\n".join(
                f"{path}: {where}: the environment variable {name or '(no name)'} is not set."
                for where, name in dict.fromkeys(missing)
            ),
            hint="set it before starting, or take ${…} out of the file ($$ writes a plain $).",
        )
    return result


def _secrets(node: object, *, secret: bool = False) -> Iterator[str]:
    """Values of the ccxt keys that are credentials, wherever they stand."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _secrets(value, secret=secret or str(key).lower() in _SECRET_KEYS)
    elif isinstance(node, list):
        for item in node:
            yield from _secrets(item, secret=secret)
    elif secret and node not in (None, "", True, False):
        yield str(node)


def _told(error: ErrorDetails) -> str:
    """One mistake: the key, what was found, what is allowed."""
    location = [part for part in error["loc"] if part not in ("is-instance", "function-after")]
    where = ".".join(map(str, location)) or "the file"
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        guess = f" Did you mean {close[0]}?" if close else ""
        return f"{where}: there is no such key.{guess} Allowed: {', '.join(allowed)}."
    if error["type"] == "missing":
        return f"{where}: is missing."
    found = "" if _is_secret(location) else f" Found: {str(error['input'])[:200]!r}."
    reason = error["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}.{found}"


def _is_secret(location: list[int | str]) -> bool:
    return "ccxt" in location or any(str(part).lower() in _SECRET_KEYS for part in location)


def _allowed_keys(location: list[int | str]) -> list[str]:
    """Keys of the model that stands at a location, found by following the fields there."""
    model: Any = PipelineConfig
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[str(part)].annotation
        else:  # a mapping of models: the part is its key
            model = model.__args__[-1]
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    )
