"""How a genuine ccxt class is pointed at the simulator."""

from __future__ import annotations

from collections.abc import Mapping

from crypto_pipeline.errors import ConfigError
from crypto_pipeline.simulator.config import DIALECT_OF_CCXT_ID

# Every URL of the ccxt class, so that no request can leave this machine: key → path.
_BINANCE_SPOT = {
    "web": "",
    "public": "/api/v3",
    "private": "/api/v3",
    "sapi": "/sapi/v1",
    "sapiV2": "/sapi/v2",
    "sapiV3": "/sapi/v3",
}
_BINANCE_OTHER = {
    "v1": "/api/v1",
    "sapiV4": "/sapi/v4",
    "dapiPublic": "/dapi/v1",
    "dapiPrivate": "/dapi/v1",
    "dapiPrivateV2": "/dapi/v2",
    "dapiData": "/futures/data",
    "eapiPublic": "/eapi/v1",
    "eapiPrivate": "/eapi/v1",
    "fapiPublic": "/fapi/v1",
    "fapiPublicV2": "/fapi/v2",
    "fapiPublicV3": "/fapi/v3",
    "fapiPrivate": "/fapi/v1",
    "fapiPrivateV2": "/fapi/v2",
    "fapiPrivateV3": "/fapi/v3",
    "fapiData": "/futures/data",
    "papi": "/papi/v1",
    "papiV2": "/papi/v2",
}
_PATHS: Mapping[str, Mapping[str, str]] = {
    "binance": {**_BINANCE_SPOT, **_BINANCE_OTHER},
    "binanceus": {**_BINANCE_SPOT, **_BINANCE_OTHER},
    "kraken": {"public": "", "private": "", "zendesk": ""},
    "coinbaseexchange": {"public": "", "private": ""},
}


def ccxt_urls(ccxt_id: str, base_url: str) -> dict[str, dict[str, str]]:
    """The ``urls`` of a ccxt constructor that make the class talk to the simulator only.

    Args:
        ccxt_id: ccxt class.
        base_url: where the exchange is mounted, such as ``http://127.0.0.1:8090/kraken``.

    Raises:
        ConfigError: the simulator does not speak this exchange.
    """
    try:
        paths = _PATHS[ccxt_id]
    except KeyError:
        known = ", ".join(DIALECT_OF_CCXT_ID)
        raise ConfigError(
            f"The simulator does not speak {ccxt_id!r} (it speaks {known})."
        ) from None
    return {"api": {name: base_url.rstrip("/") + path for name, path in paths.items()}}
