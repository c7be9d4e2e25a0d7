"""Reading ``pipeline.yaml``: ``${NAME}`` from the environment, and mistakes told in one message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from crypto_pipeline.config.model import PipelineConfig
from crypto_pipeline.errors import ConfigError
from crypto_pipeline.redaction import redacted

_VARIABLE: Final = re.compile(r"\$(?:\$|\{([^}]*)(\})?)")
#: Keys whose values are credentials: ccxt's own names for them, and what is usual in headers.
_SECRET_KEYS: Final = re.compile(
    r".*(?:secret|password|passphrase|apikey|privatekey|authorization|cookie)"
    r"|.*token|walletaddress|accountid|uid|login|twofa"
)
_SECRET_NAMES: Final = re.compile(r"key|secret|passw|passphrase|token|credential", re.IGNORECASE)
_USER_IN_URL: Final = re.compile(r"://([^/@\s]+)@")
_NEEDED: Final = {
    "exchanges": "a mapping of exchanges",
    "symbols": 'a list of ccxt symbols like ["BTC/USDT"]',
    "start": "the first UTC day of history like 2024-01-01",
}
#: pydantic's words for these speak of Python.
_REASONS: Final = {
    "model_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
    "too_short": "must have at least 1 item",
}


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
        raise ConfigError(f"{path}: not valid YAML: {_yaml_reason(error)}.") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML's constructors let these through: 2024-13-01, a tag that does not fit its value
        raise ConfigError(f"{path}: not valid YAML: {error}.") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no mapping.", hint="start it with the key exchanges.")
    variables = _Variables(environment)
    try:
        literal = list(_literal_credentials(document))
        document = variables.filled_in(document)
    except RecursionError:
        raise ConfigError(f"{path}: a mapping or list holds itself.") from None
    secrets = tuple(sorted({*variables.secrets, *_secrets(document)}, key=len, reverse=True))
    if variables.mistakes:
        lines = [redacted(line, secrets) for line in dict.fromkeys(variables.mistakes)]
        raise ConfigError(
            "\n".join(f"{path}: {line}" for line in lines),
            hint="set it before starting, or take ${…} out of the file ($$ writes a plain $).",
        )
    try:
        pipeline = PipelineConfig.model_validate(document)
    except ValidationError as error:
        lines = [_told(each, secrets) for each in _first_causes(error.errors())]
        told = "\n".join(f"{path}: {redacted(line, secrets)}" for line in dict.fromkeys(lines))
        raise ConfigError(told) from None
    if literal:
        raise ConfigError(
            "\n".join(f"{path}: {where}: a credential stands in the file." for where in literal),
            hint="write ${NAME} there, and set that environment variable before starting.",
        )
    return LoadedConfig(pipeline, path, secrets)


def _yaml_reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line itself: it may hold a credential."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
    return f"{error.problem or error.context}{where}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML silently keeps the last of two equal keys: an exchange would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - yaml's signature
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
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


def _first_causes(errors: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """All but those that follow from others: a list whose items are all wrong is not too short."""
    for error in errors:
        below = [each["loc"] for each in errors if each["loc"][: len(error["loc"])] == error["loc"]]
        if error["type"] != "too_short" or len(below) == 1:
            yield error


class _Variables:
    """Fills in ``${NAME}``; notes every mistake, and values of variables named like credentials."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.mistakes: list[str] = []
        self.secrets: set[str] = set()

    def filled_in(self, node: Any, where: str = "") -> Any:
        """The node with its variables; ``where`` is its path in the file."""
        if isinstance(node, dict):
            return self._mapping(node, where)
        if isinstance(node, list):
            return [self.filled_in(item, f"{where}[{index}]") for index, item in enumerate(node)]
        if isinstance(node, str):
            return _VARIABLE.sub(lambda match: self._value(match, where), node)
        return node

    def _mapping(self, node: dict[Any, Any], where: str) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key, value in node.items():
            name = self.filled_in(key, where)
            if name in result:
                self.mistakes.append(f"{where or 'the file'}: the key {name!r} stands twice.")
            result[name] = self.filled_in(value, f"{where}.{key}" if where else str(key))
        return result

    def _value(self, match: re.Match[str], where: str) -> str:
        name, closed = match[1], match[2]
        if name is None:
            return "$"
        if closed is None:
            self.mistakes.append(f"{where}: a ${{ without its closing brace.")
        elif name not in self._environment:
            shown = name or "(no name)"
            self.mistakes.append(f"{where}: the environment variable {shown} is not set.")
        value = self._environment.get(name, "")
        if value and _SECRET_NAMES.search(name):
            self.secrets.add(value)
        return value


def _literal_credentials(node: object, where: str = "", *, secret: bool = False) -> Iterator[str]:
    """Where credentials are written out instead of being named as variables."""
    if isinstance(node, dict):
        for key, value in node.items():
            below = f"{where}.{key}" if where else str(key)
            yield from _literal_credentials(value, below, secret=secret or _is_secret_key(key))
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _literal_credentials(item, f"{where}[{index}]", secret=secret)
    elif secret and node not in (None, "", True, False):
        variables = (match[1] for match in _VARIABLE.finditer(str(node)))
        if not any(variables):
            yield where


def _secrets(node: object, *, secret: bool = False) -> Iterator[str]:
    """Values of the keys that are credentials, wherever they stand, and those in URLs."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _secrets(value, secret=secret or _is_secret_key(key))
    elif isinstance(node, list):
        for item in node:
            yield from _secrets(item, secret=secret)
    elif secret and node not in (None, "", True, False):
        yield str(node)
    elif isinstance(node, str):
        for user in _USER_IN_URL.findall(node):
            password = user.partition(":")[2]
            yield from filter(None, [user, unquote(user), password, unquote(password)])
        for key, value in parse_qsl(node.partition("?")[2]):
            if value and (_is_secret_key(key) or _SECRET_NAMES.search(key)):
                yield value


def _is_secret_key(key: object) -> bool:
    return _SECRET_KEYS.fullmatch(re.sub(r"[^a-z0-9]", "", str(key).lower())) is not None


def _told(error: ErrorDetails, secrets: tuple[str, ...]) -> str:
    """One mistake: the key, what was found, what is allowed."""
    location = list(error["loc"])
    where = ".".join(map(str, location)) or "the file"
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        guess = f" Did you mean {close[0]}?" if close else ""
        return f"{where}: there is no such key.{guess} Allowed: {', '.join(allowed)}."
    if error["type"] == "missing":
        needed = _NEEDED.get(str(location[-1]), "")
        return f"{where}: is missing{needed and f': {needed}'}."
    reason = _REASONS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}.{_found(error['input'], location, secrets)}"


def _found(value: object, location: list[int | str], secrets: tuple[str, ...]) -> str:
    """What stands there, unless it is or may hold a credential. Cut after redaction."""
    if "ccxt" in location or any(map(_is_secret_key, location)) or isinstance(value, dict):
        return ""
    return f" Found: {redacted(str(value), secrets)[:200]!r}."


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
