"""Every mistake in pipeline.yaml is one ConfigError: file, key, what was found, what is allowed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from crypto_pipeline.config.load import LoadedConfig, load_config
from crypto_pipeline.errors import ConfigError

VALID: Final = """\
exchanges:
  binance:
    symbols: ["BTC/USDT", "ETH/USDT"]
    timeframes: ["1m", "1h"]
    start: 2024-01-01
    ccxt: {apiKey: "${BINANCE_KEY}", options: {adjustForTimeDifference: true}}
    habits: {page: 500}
    retry: {attempts: 3}
  kraken:
    symbols: ["BTC/USD"]
    start: 2024-02-01
live: {reread: 5}
"""
KEY: Final = "FAKE-key-0123456789"

Load = Callable[..., LoadedConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as pipeline.yaml."""

    def run(text: str | bytes, environment: Mapping[str, str] | None = None) -> LoadedConfig:
        path = tmp_path / "pipeline.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, {"BINANCE_KEY": KEY} if environment is None else environment)

    return run


def refused(load: Load, text: str | bytes, environment: Mapping[str, str] | None = None) -> str:
    """The message; it names the file in every line, and holds no credential."""
    with pytest.raises(ConfigError) as caught:
        load(text, environment)
    message = caught.value.message
    assert all("pipeline.yaml: " in line for line in message.splitlines())
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None or KEY not in str(caught.value.__cause__)
    assert "pydantic" not in str(caught.value)
    return str(caught.value)


def changed(*path: str | int, to: Any) -> str:
    """The valid file with the value at a path replaced (or added)."""
    document = yaml.safe_load(VALID)
    node = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = to
    return yaml.safe_dump(document, sort_keys=False)


def test_the_valid_file_is_valid_and_defaults_are_filled_in(load: Load) -> None:
    """The file the mistakes below start from."""
    pipeline = load(VALID).pipeline
    binance, kraken = pipeline.exchanges["binance"], pipeline.exchanges["kraken"]
    assert binance.ccxt["apiKey"] == KEY
    assert (binance.ccxt_id, kraken.ccxt_id) == ("binance", "kraken")
    assert kraken.timeframes == ("1m",)
    assert pipeline.start == date(2024, 1, 1)
    assert list(binance.series)[:2] == [("BTC/USDT", "1m"), ("BTC/USDT", "1h")]
    assert binance.exchange_habits.page == 500
    assert binance.exchange_habits.until == "inclusive"
    assert kraken.exchange_habits.history == 720


@pytest.mark.parametrize(
    ("path", "guess", "allowed"),
    [
        (("exchangs",), "exchanges", "exchanges, backfill, live, database"),
        (("exchanges", "binance", "symbol"), "symbols", "ccxt_id, symbols, timeframes, start"),
        (("exchanges", "kraken", "timeframe"), "timeframes", "ccxt_id, symbols"),
        (("exchanges", "binance", "retry", "attempt"), "attempts", "first_wait_seconds"),
        (("exchanges", "binance", "habits", "pages"), "page", "page, until, history"),
        (("live", "rereads"), "reread", "reread, max_lag_seconds"),
        (("exchanges", "binance", 7), None, "ccxt_id"),
    ],
)
def test_an_unknown_key_is_told_with_the_likely_one(
    load: Load, path: tuple[str, ...], guess: str | None, allowed: str
) -> None:
    """A misspelt key was silently a default."""
    if path[-1] == 7:
        message = refused(load, changed(*path, to=1))
        assert "exchanges.binance.7" in message
        return
    message = refused(load, changed(*path, to={}))
    assert f"{'.'.join(path)}: there is no such key. Did you mean {guess}? Allowed: " in message
    assert allowed in message


@pytest.mark.parametrize("path", [("exchanges",), ("exchanges", "kraken", "symbols"),
                                  ("exchanges", "kraken", "start")])  # fmt: skip
def test_a_missing_key_is_named_with_what_it_is(load: Load, path: tuple[str, ...]) -> None:
    """Only these three have no default."""
    document = yaml.safe_load(VALID)
    node = document
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    assert f"{'.'.join(path)}: is missing: " in refused(load, yaml.safe_dump(document))


MISTAKES: Final[list[tuple[tuple[str | int, ...], Any, str]]] = [
    (("exchanges", "binance", "symbols"), ["BTCUSDT"], "not a unified ccxt symbol like BTC/USDT"),
    (("exchanges", "binance", "symbols"), ["BTC/USDT|x"], "not a unified ccxt symbol"),
    (("exchanges", "binance", "symbols"), ["BTC /USDT"], "not a unified ccxt symbol"),
    (("exchanges", "binance", "symbols"), ["BTC/US\0DT"], "not a unified ccxt symbol"),
    (("exchanges", "binance", "symbols"), ["BTC/USDT", "BTC/USDT"], "listed twice: BTC/USDT"),
    (("exchanges", "binance", "symbols"), [], "at least 1 item"),
    (("exchanges", "binance", "symbols"), "BTC/USDT", "must be a list"),
    (("exchanges", "binance", "symbols"), None, "must be a list"),
    (("exchanges", "binance", "symbols"), [None], "valid string"),
    (("exchanges", "binance", "symbols"), [["BTC/USDT"]], "valid string"),
    (("exchanges", "binance", "timeframes"), ["1 m"], "is not a timeframe (examples: 1m"),
    (("exchanges", "binance", "timeframes"), ["1w"], "is not a timeframe"),
    (("exchanges", "binance", "timeframes"), ["7m"], "does not divide a UTC day"),
    (("exchanges", "binance", "timeframes"), ["1m", "1m"], "listed twice: 1m"),
    (("exchanges", "binance", "timeframes"), [1], "valid string"),
    (("exchanges", "binance", "start"), "soon", "date"),
    (("exchanges", "binance", "start"), "2024-02-30", "date"),
    (("exchanges", "binance", "start"), 2024, "not a UTC day like 2024-01-01"),
    (("exchanges", "binance", "start"), 0, "not a UTC day like 2024-01-01"),
    (("exchanges", "binance", "start"), 1704067200, "not a UTC day like 2024-01-01"),
    (("exchanges", "binance", "start"), True, "not a UTC day like 2024-01-01"),
    (("exchanges", "binance", "start"), None, "not a UTC day like 2024-01-01"),
    (("exchanges", "binance", "start"), date(1969, 12, 31), "before 1970-01-01"),
    (("exchanges", "binance", "concurrency"), 0, "greater than or equal to 1"),
    (("exchanges", "binance", "concurrency"), 10_000, "less than or equal to 200"),
    (("exchanges", "binance", "concurrency"), "many", "valid integer"),
    (("exchanges", "binance", "timeout_seconds"), 0.0001, "greater than or equal to 0.1"),
    (("exchanges", "binance", "timeout_seconds"), float("inf"), "must be a finite number"),
    (("exchanges", "binance", "answer_megabytes"), 0.5, "greater than or equal to 1"),
    (("exchanges", "binance", "answer_megabytes"), 2_000, "less than or equal to 1000"),
    (("exchanges", "binance", "timeout_seconds"), float("nan"), "must be a finite number"),
    (("exchanges", "binance", "retry", "longest_wait_seconds"), float("inf"), "finite number"),
    (("exchanges", "binance", "habits", "page"), 0, "greater than or equal to 1"),
    (("exchanges", "binance", "habits", "until"), "maybe", "'inclusive' or 'exclusive'"),
    (("exchanges", "binance", "habits"), 5, "must be a mapping"),
    (("exchanges", "binance", "retry"), ["attempts"], "must be a mapping"),
    (("exchanges", "binance", "ccxt"), "apiKey", "must be a mapping"),
    (("exchanges", "binance", "ccxt", "options"), None, "options must be a mapping"),
    (("exchanges", "binance", "ccxt", "has"), [1], "has must be a mapping"),
    (("exchanges", "binance", "ccxt", "enableRateLimit"), "false", "must be true or false"),
    (("exchanges", "binance", "ccxt", "maxRetriesOnFailure"), 3, "bypass its rate limiter"),
    (("exchanges", "binance", "ccxt", "session"), 3, "opens the session"),
    (("exchanges", "binance", "ccxt", "asyncio_loop"), 3, "runs the event loop"),
    (("exchanges", "binance"), None, "must be a mapping"),
    (("exchanges", "binance"), ["BTC/USDT"], "must be a mapping"),
    (("exchanges",), ["binance"], "must be a mapping"),
    (("exchanges",), {}, "at least 1 item"),
    (("live",), None, "must be a mapping"),
    (("live", "reread"), -1, "greater than or equal to 0"),
    (("backfill",), {"partitions_per_run": 0}, "greater than or equal to 1"),
    (("retention",), {"minute_runs_days": 0}, "greater than or equal to 1"),
    (("retention",), {"runs_days": 2}, "greater than or equal to 3"),
]


@pytest.mark.parametrize(("path", "value", "expected"), MISTAKES)
def test_a_wrong_value_is_told_with_its_key_and_what_is_allowed(
    load: Load, path: tuple[str | int, ...], value: Any, expected: str
) -> None:
    """One line: the key, the reason, and what was found where that is no credential."""
    message = refused(load, changed(*path, to=value))
    assert expected in message
    assert f"pipeline.yaml: {'.'.join(map(str, path[:3]))}" in message
    assert len(message.splitlines()) == 1
    if isinstance(value, str | int) and "ccxt" not in path:
        assert f"Found: {str(value)!r}" in message


@pytest.mark.parametrize(
    "text", ["2024-01-01T12:00:00", "2024-01-01 00:00:00", "2024-01-01T00:00:00Z"]
)
def test_a_start_with_a_time_is_refused(load: Load, text: str) -> None:
    """A day is a day in UTC; an hour in it would be dropped without a word."""
    message = refused(load, VALID.replace("start: 2024-01-01", f"start: {text}"))
    assert "exchanges.binance.start: not a UTC day like 2024-01-01, without a time" in message


@pytest.mark.parametrize(
    "key", ["../x", "a|b", "a/b", "A", "", "-x", "x" * 64, "münze", "a b", "a=b", "a\nb", ".."]
)
def test_an_exchange_key_that_cannot_be_a_partition_key_is_refused(load: Load, key: str) -> None:
    """It is a partition key, a folder of the lake and a column value; ``../x`` left the lake."""
    document = yaml.safe_load(VALID)
    document["exchanges"][key] = document["exchanges"].pop("binance") | {"ccxt_id": "binance"}
    message = refused(load, yaml.safe_dump(document))
    assert f"{key!r} cannot be a partition key: use lower-case letters, digits, _ and -" in message
    assert "BTC/USDT" not in message  # the sections, credentials among them, stay out of it


@pytest.mark.parametrize("key", [5, None, True, 1.5, date(2024, 1, 1)])
def test_an_exchange_key_that_is_no_text_is_refused(load: Load, key: Any) -> None:
    """YAML reads ``5:``, ``null:`` and ``on:`` as other things than text."""
    document = yaml.safe_load(VALID)
    document["exchanges"][key] = {"symbols": ["BTC/USD"], "start": date(2024, 1, 1)}
    assert "exchanges." in refused(load, yaml.safe_dump(document))


@pytest.mark.parametrize(
    "section",
    [
        {"options": {"maxRetriesOnFailure": 3}},
        {"options": {"api/v3/klines": {"maxRetriesOnFailure": 3}}},
        {"options": {"defaultMaxRetriesOnFailure": 3}},
        {"options": {"fetchOHLCV": {"paginate": True}}},
        {"options": {"paginate": True}},
        {"options": {"fetchOHLCV": {"defaultPaginate": True}}},
    ],
)
def test_ccxt_settings_that_lose_candles_are_refused_at_any_depth(
    load: Load, section: dict[str, Any]
) -> None:
    """ccxt reads these from ``options``; its pagination loses up to 1,000 rows a page."""
    message = refused(load, changed("exchanges", "binance", "ccxt", to=section))
    assert "exchanges.binance.ccxt: options." in message
    assert "cannot be set: " in message


# --- YAML itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null", "- binance\n",
                                  "just words", "17", "[]"])  # fmt: skip
def test_a_file_that_holds_no_mapping_says_how_to_start(load: Load, text: str) -> None:
    """An empty file is the first thing a new user saves."""
    assert "holds no mapping. What to do: start it with the key exchanges." in refused(load, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VALID + VALID, "the key 'exchanges' stands twice in one mapping"),
        (VALID.replace("  kraken:", "  binance:"), "the key 'binance' stands twice"),
        (VALID.replace("attempts: 3", "attempts: 3, attempts: 4"), "'attempts' stands twice"),
        ("exchanges: {1: {}, 1: {}}", "the key 1 stands twice"),
        ("exchanges: {[a]: {}}", "a key is not plain text"),
        ("exchanges: {{a: b}: {}}", "a key is not plain text"),
        ("exchanges: {? !!set {a} : {}}", "a key is not plain text"),
        ("a: b: c", "not valid YAML"),
        ("exchanges:\n\t- x", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: *nowhere", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: !!int x", "not valid YAML"),
        ("a: !!float x", "not valid YAML"),
        ("a: !!bool x", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("a: !!binary é", "not valid YAML"),
        ("start: 2024-13-45", "not valid YAML"),
        ("start: 2024-01-01 25:00:00", "not valid YAML"),
        ("a: " + "[" * 1_200, "not valid YAML"),
        ("exchanges: &x {binance: *x}", "holds itself"),
        ("exchanges: &x [*x]", "holds itself"),
        ("a: \x07", "not valid YAML"),
    ],
)
def test_broken_yaml_is_a_config_error(load: Load, text: str, expected: str) -> None:
    """PyYAML keeps the last of two equal keys, and lets ValueErrors of its constructors out."""
    assert expected in refused(load, text)


def test_yaml_errors_name_the_line_but_do_not_quote_it(load: Load) -> None:
    """PyYAML's message shows the line where it stumbled: often the one with the credential."""
    message = refused(load, f'exchanges:\n  binance:\n    ccxt: {{apiKey: "{KEY}, x: [}}')
    assert "line 3" in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"exchanges: \xe9"])
def test_a_file_that_is_no_text_is_refused(load: Load, content: bytes) -> None:
    """Saved in another encoding."""
    assert "cannot be read" in refused(load, content)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    """The first run in a wrong folder."""
    with pytest.raises(ConfigError, match=r"there is no such file.*CRYPTO_PIPELINE_CONFIG"):
        load_config(tmp_path / "pipeline.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, {})


def test_anchors_and_merge_keys_work(load: Load) -> None:
    """Two exchanges with the same section: ``<<`` was refused as a key nobody could construct."""
    text = """
exchanges:
  binance: &common {symbols: ["BTC/USDT"], start: 2024-01-01, retry: &retry {attempts: 2}}
  binanceus: {<<: *common, start: 2024-02-02}
  kraken: {symbols: ["BTC/USD"], start: 2024-01-01, retry: {<<: [*retry], attempts: 7}}
"""
    exchanges = load(text).pipeline.exchanges
    assert exchanges["binanceus"].symbols == ("BTC/USDT",)
    assert exchanges["binanceus"].start == date(2024, 2, 2)
    assert exchanges["binanceus"].ccxt_id == "binanceus"
    assert exchanges["kraken"].retry.attempts == 7


# --- ${NAME} -------------------------------------------------------------------------------------


def test_unset_variables_are_all_named_with_their_keys(load: Load) -> None:
    """Each one, so that a new machine is set up in one go."""
    text = changed("exchanges", "kraken", "symbols", to=["BTC/USD", "${COIN}/USD"])
    message = refused(load, text, {})
    assert "exchanges.binance.ccxt.apiKey: the environment variable BINANCE_KEY is not" in message
    assert "exchanges.kraken.symbols[1]: the environment variable COIN is not set" in message
    assert "$$ writes a plain $" in message


def test_dollars_are_escaped_and_plain_ones_stay(load: Load) -> None:
    """``$$`` is ``$``; what is not in braces is not a variable; values are not read again."""
    section = {"userAgent": "$${A}$$$${B} $HOME $", "headers": {"${NAME}": "a${A}b${A}"}}
    text = changed("exchanges", "binance", "ccxt", to=section)
    ccxt = load(text, {"A": "${B}$$", "NAME": "X-Test"}).pipeline.exchanges["binance"].ccxt
    assert ccxt["userAgent"] == "${A}$${B} $HOME $"
    assert ccxt["headers"] == {"X-Test": "a${B}$$b${B}$$"}


def test_variables_work_in_every_value_and_key(load: Load) -> None:
    """Numbers and days come out of the environment as text."""
    text = VALID.replace("start: 2024-01-01", "start: ${DAY}")
    text = text.replace("attempts: 3", 'attempts: "${N}"')
    text = text.replace("binance:", "${EXCHANGE}:")
    environment = {"BINANCE_KEY": KEY, "DAY": "2024-01-05", "N": "4", "EXCHANGE": "binanceus"}
    exchange = load(text, environment).pipeline.exchanges["binanceus"]
    assert exchange.start == date(2024, 1, 5)
    assert exchange.retry.attempts == 4


@pytest.mark.parametrize("text", ["${BINANCE_KEY", "x ${", "${A ${BINANCE_KEY"])
def test_an_unclosed_variable_is_told(load: Load, text: str) -> None:
    """``${BINANCE_KEY`` was sent to the exchange as the key."""
    message = refused(load, changed("exchanges", "binance", "ccxt", to={"apiKey": text}))
    assert "exchanges.binance.ccxt.apiKey: a ${ without its closing brace" in message


def test_keys_that_become_equal_are_told(load: Load) -> None:
    """Two exchanges whose keys come from variables: one would vanish without a word."""
    text = VALID.replace("  kraken:", "  ${OTHER}:")
    message = refused(load, text, {"BINANCE_KEY": KEY, "OTHER": "binance"})
    assert "exchanges: the key 'binance' stands twice" in message


# --- credentials ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "section",
    [
        {"apiKey": KEY},
        {"secret": KEY},
        {"password": [KEY]},
        {"options": {"brokerToken": KEY}},
        {"headers": {"Authorization": KEY}},
        {"headers": {"X-MBX-APIKEY": KEY}},
        {"httpsProxy": f"http://user:{KEY}@proxy:8080"},
        {"accountId": KEY, "walletAddress": KEY},
    ],
)
def test_credentials_are_known_and_never_shown(load: Load, section: dict[str, Any]) -> None:
    """What no output may ever show, whatever else is wrong with the file."""
    named = json.loads(json.dumps(section).replace(KEY, "${BINANCE_KEY}"))
    assert KEY in load(changed("exchanges", "binance", "ccxt", to=named)).secrets
    for wrong in (
        changed("exchanges", "binance", to={"symbols": KEY, "ccxt": section}),
        changed("exchanges", "binance", to={"start": KEY, "apiKey": KEY, "ccxt": [section]}),
        changed("exchanges", "binance", to={"symbols": [KEY], "ccxt": section, "live": {}}),
        changed("exchanges", "B", to={"ccxt": section, "symbols": ["A/B"], "start": date.min}),
        changed("exchanges", to=[{"ccxt": section}]),
    ):
        refused(load, wrong)


@pytest.mark.parametrize("key", ["apiKey", "secret", "walletAddress"])
@pytest.mark.parametrize("text", [KEY, "$${BINANCE_KEY}", 12345])
def test_a_credential_written_out_in_the_file_is_refused(load: Load, key: str, text: Any) -> None:
    """Files are committed, copied and shown: keys come from the environment only."""
    message = refused(load, changed("exchanges", "binance", "ccxt", to={key: text}))
    assert f"exchanges.binance.ccxt.{key}: a credential stands in the file" in message


def test_variables_named_like_credentials_are_credentials_wherever_they_stand(load: Load) -> None:
    """``symbols: ${BINANCE_KEY}`` by mistake, or a key inside a URL."""
    assert load(changed("exchanges", "binance", "ccxt", to={"x": "a${BINANCE_KEY}"})).secrets == (
        KEY,
    )
    refused(load, changed("exchanges", "binance", "symbols", to="${BINANCE_KEY}"))
    refused(load, changed("exchanges", "binance", "symbols", to=["${BINANCE_KEY}"]))
    refused(load, changed("exchanges", "${BINANCE_KEY}", to={}))


def test_empty_credentials_are_no_secrets(load: Load) -> None:
    """An empty secret would turn every message into asterisks; ``tokenBucket`` is no token."""
    section = {"apiKey": "", "secret": None, "options": {"tokenBucket": {"capacity": 17}}}
    assert load(changed("exchanges", "binance", "ccxt", to=section)).secrets == ()


# --- anything near a valid file ------------------------------------------------------------------

_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 3_000), st.floats(), st.text(max_size=8), st.dates(),
    st.datetimes(), st.sampled_from(["1m", "BTC/USDT", "${BINANCE_KEY}", "${X}", "$$", "binance"]),
)  # fmt: skip
_keys = st.one_of(
    st.sampled_from(["exchanges", "symbols", "start", "ccxt", "habits", "retry", "page", "live",
                     "apiKey", "options", "timeframes", "binance", "until", "history"]),
    st.text(max_size=6), st.integers(0, 3), st.none(), st.booleans(),
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=6,
)


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path, *(found for key, value in below for found in _paths(value, (*path, key)))]


_DOCUMENT: Final = yaml.safe_load(VALID)
_ALL_PATHS: Final = _paths(_DOCUMENT)


@settings(
    deadline=None, database=None, derandomize=True, max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(_ALL_PATHS), st.one_of(st.none(), _keys), _values),
        min_size=1,
        max_size=3,
    )
)
@example(changes=[(("exchanges", "binance"), "habits", {"page": {"x": 1}})])
@example(changes=[((), None, {"exchanges": {"binance": {1: 2}}})])
def test_any_document_is_valid_or_a_config_error(
    load: Load, changes: list[tuple[tuple[Any, ...], Any, Any]]
) -> None:
    """Whatever a user writes: a configuration, or one ConfigError; the telling itself never fails."""
    document = copy.deepcopy(_DOCUMENT)
    for path, key, value in changes:
        document = _with(document, path, key, value)
    text = yaml.safe_dump(document, sort_keys=False)
    try:
        loaded = load(text)
    except ConfigError as error:
        _assert_told(error)
    else:
        assert loaded.pipeline.exchanges
        for exchange in loaded.pipeline.exchanges.values():
            assert exchange.series
            assert exchange.exchange_habits.page > 0


def _assert_told(error: ConfigError) -> None:
    assert "pipeline.yaml" in str(error)
    assert KEY not in str(error)


def _with(document: Any, path: tuple[Any, ...], key: Any, value: Any) -> Any:
    """The document with a value put at a path, or under another key of the mapping there."""
    node, parent, last = document, None, None
    for part in path:
        if not isinstance(node, dict | list):
            return document
        try:
            parent, last, node = node, part, node[part]
        except (KeyError, IndexError, TypeError):
            return document
    if key is not None and isinstance(node, dict):
        node[key] = value
    elif parent is None:
        return value
    else:
        parent[last] = value
    return document


@settings(
    deadline=None, database=None, derandomize=True, max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    start=st.integers(0, len(VALID)),
    length=st.integers(0, 12),
    text=st.text(alphabet=st.sampled_from("{}[]:,&*!|>'\"%@`#-? \n\tax01$<=~"), max_size=5),
)
def test_any_typing_error_is_valid_or_a_config_error(
    load: Load, start: int, length: int, text: str
) -> None:
    """The text itself, with a few characters replaced."""
    try:
        load(VALID[:start] + text + VALID[start + length :])
    except ConfigError as error:
        _assert_told(error)
