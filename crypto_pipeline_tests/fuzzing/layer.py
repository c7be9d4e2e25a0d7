"""The strict layer over genuine ccxt, from an answer's body on: everything but the socket."""

from __future__ import annotations

import struct
from typing import Any, Final

from crypto_pipeline.errors import ExchangeError
from crypto_pipeline.exchanges.exchanged import CURRENT, Exchanged
from crypto_pipeline.exchanges.failures import told
from crypto_pipeline.exchanges.layouts import Layouts
from crypto_pipeline.exchanges.strict import strict_exchange

SYMBOL: Final = "BTC/USD"


class StrictLayer:
    """A genuine ccxt exchange held to strict answers, from the body on."""

    def __init__(self, exchange: str) -> None:
        self.exchange = exchange
        self.ccxt = strict_exchange(exchange, {})
        self.ccxt.set_markets([_market(SYMBOL)])
        self.layouts = Layouts(self.ccxt)

    def rows(self, body: str) -> list[Any]:
        """The rows of a body, as ``ExchangeWrapper.fetch`` gets them.

        Raises:
            ExchangeError: as it would.
        """
        seen = Exchanged()
        token = CURRENT.set(seen)
        failure: ExchangeError | None = None
        try:
            response = self.ccxt.parse_json(body)
            url, method = "http://localhost", "GET"
            self.ccxt.handle_errors(200, "OK", url, method, {}, body, response, None, None)
            self.ccxt.parse_ohlcvs(self._found(response))
        except Exception as error:  # noqa: BLE001 - as asking.Asker does
            failure = told(error, tried="fuzzing", seen=seen, redact=())
        finally:
            CURRENT.reset(token)
        if failure is not None:
            raise failure
        assert seen.rows is not None
        return seen.rows

    def _found(self, response: Any) -> Any:
        """Where ccxt's ``fetch_ohlcv`` takes the rows from, its empty default included."""
        if self.exchange == "kraken":
            return self.ccxt.safe_list(self.ccxt.safe_value(response, "result", {}), "BTCUSD", [])
        return (
            self.ccxt.safe_list(response, "candles", [])
            if self.exchange == "coinbase"
            else response
        )


def _market(symbol: str) -> dict[str, Any]:
    base, quote = symbol.split("/")
    return {
        "id": base + quote, "symbol": symbol, "base": base, "quote": quote, "baseId": base,
        "quoteId": quote, "type": "spot", "spot": True, "swap": False, "future": False,
        "option": False, "contract": False, "linear": None, "inverse": None, "active": True,
        "precision": {}, "limits": {}, "info": {},
    }  # fmt: skip


def same_json(rows: list[Any], made: list[Any], body: Any) -> bool:
    """Whether the strict layer's rows are the standard decoder's, numbers taken as floats."""
    while isinstance(body, dict):
        body = next(
            value for name, value in body.items() if name in ("result", "candles", "BTCUSD")
        )
    return _floats(rows) == _floats(body) and len(body) == len(made)


def _floats(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _floats(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_floats(value) for value in node]
    if type(node) in (int, float):
        try:
            return struct.pack(">d", float(node))
        except OverflowError:
            return "huge"
    return node
