"""Answers meant to take a client's memory or time, whatever was asked."""

from __future__ import annotations

import zlib
from functools import lru_cache

import orjson

from crypto_pipeline.simulator.dialects import Dialect
from crypto_pipeline.simulator.faults import Fault
from crypto_pipeline.simulator.wire import Answer

_MB = 1_000_000
_PIECE = b"[0,0,0,0,0,0],"
_WINDOW_BITS = {"gzip": 31, "deflate": 15, "raw deflate": -15}


def hostile_answer(answer: Answer, fault: Fault, dialect: Dialect) -> Answer:
    """The answer as a fault of this kind leaves it: its status and headers stay."""
    match fault.act:
        case "large":
            answer.body = [b"[", *[_PIECE * 1_000] * (fault.megabytes * _MB // 14_000), b"0]"]
            answer.chunked = fault.encoding == "chunked"
        case "many_rows":
            answer.body = _with_rows(answer.whole, fault.rows, dialect)
        case "many_values":
            answer.body = [b"[", b"[]," * (fault.megabytes * _MB // 3), b"0]"]
        case "deep":
            depth = fault.megabytes * _MB // 2
            answer.body = b"[" * depth + b"]" * depth
        case "bomb":
            answer.body = _packed(fault.megabytes, fault.encoding)
            answer.headers["Content-Encoding"] = fault.encoding.removeprefix("raw ")
        case "endless":
            answer.body, answer.chunked, answer.pause = _PIECE * 1_000, True, 0
        case "trickle":
            answer.body, answer.chunked, answer.pause = b"[", True, 0.02
        case "many_headers":
            answer.headers |= {f"X-Flood-{number}": "x" * 1_000 for number in range(fault.rows)}
        case "many_interims":
            answer.interims = fault.rows
    return answer


def _with_rows(body: bytes, wanted: int, dialect: Dialect) -> bytes:
    """The true rows again and again."""
    content = orjson.loads(body)
    rows = dialect.rows_in(content)
    if rows:
        rows[:] = (rows * (wanted // len(rows) + 1))[:wanted]
    return orjson.dumps(content)


@lru_cache(maxsize=8)
def _packed(megabytes: int, encoding: str) -> bytes:
    """So many MB of zeros in a list, at a thousandth of their size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, _WINDOW_BITS[encoding])
    pieces = [packer.compress(b"[")]
    pieces += [packer.compress(b"0," * (_MB // 2)) for _ in range(megabytes)]
    return b"".join([*pieces, packer.compress(b"0]"), packer.flush()])
