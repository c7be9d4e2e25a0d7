"""The control endpoint from another process."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode, urlsplit

from crypto_pipeline.errors import LocalServiceError
from crypto_pipeline.simulator.config import BudgetConfig, ClockConfig
from crypto_pipeline.simulator.faults import Fault

_TIMEOUT_SECONDS = 30


class SimulatorControl:
    """Synchronous client of a simulator's control endpoint.

    Args:
        base_url: of the common port, such as ``http://127.0.0.1:8090``.

    Raises:
        LocalServiceError: (every method) the simulator is away or refuses the call.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._address = urlsplit(self.base_url).netloc

    def overview(self) -> dict[str, Any]:
        """Ports, exchanges with their URLs, clocks and symbols."""
        return self._call("GET", "")

    def add_fault(self, fault: Fault | None = None, **fields: Any) -> int:
        """Put a fault in force, given whole or as its fields; its id."""
        fault = Fault(**fields) if fault is None else fault
        content = fault.model_dump(mode="json", exclude={"id"}, exclude_unset=True)
        return int(self._call("POST", "faults", content)["id"])

    def clear_faults(self, fault_id: int | None = None) -> None:
        """Lift one fault, or all."""
        self._call("DELETE", "faults" if fault_id is None else f"faults?id={fault_id}")

    def faults(self) -> list[dict[str, Any]]:
        """Faults in force, with how often each matched (``seen``) and acted (``acted``)."""
        return list(self._call("GET", "faults")["faults"])

    def set_clock(self, clock: ClockConfig | None = None, **fields: Any) -> None:
        """Set the shared clock: ``frozen_at=``, or ``starts_at=`` and ``speed=``; none is real."""
        clock = ClockConfig(**fields) if clock is None else clock
        self._call("POST", "clock", clock.model_dump(exclude_none=True))

    def set_clock_offset(self, exchange: str, seconds: float) -> None:
        """Put one exchange's clock ahead of the shared one (negative: behind)."""
        self._call("POST", "exchange", {"exchange": exchange, "clock_offset": seconds})

    def set_latency(self, exchange: str, seconds: float) -> None:
        """Delay every answer of an exchange."""
        self._call("POST", "exchange", {"exchange": exchange, "latency": seconds})

    def set_budget(self, exchange: str, budget: BudgetConfig | None) -> None:
        """Enforce a budget from now on, or none."""
        content = None if budget is None else budget.model_dump()
        self._call("POST", "exchange", {"exchange": exchange, "budget": content})

    def stop_listening(self, exchange: str) -> None:
        """Refuse connections to an exchange that has a port of its own."""
        self._call("POST", "exchange", {"exchange": exchange, "listening": False})

    def start_listening(self, exchange: str) -> None:
        """Accept connections again."""
        self._call("POST", "exchange", {"exchange": exchange, "listening": True})

    def counters(self) -> dict[str, Any]:
        """``{exchange: {"endpoints": {name: requests}, "statuses": {code: requests}}}``."""
        return dict(self._call("GET", "counters")["counters"])

    def arrivals(
        self, *, exchange: str | None = None, endpoint: str | None = None, since_ns: int = 0
    ) -> list[dict[str, Any]]:
        """The log of requests, oldest first (fields: `arrivals.Arrival`)."""
        query = {"exchange": exchange, "endpoint": endpoint, "since_ns": since_ns}
        text = urlencode({name: value for name, value in query.items() if value is not None})
        return list(self._call("GET", f"arrivals?{text}")["arrivals"])

    def reset(self) -> None:
        """As freshly started: no faults, no log, configured clocks, latencies and budgets."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, content: object = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_SECONDS)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, f"/_control/{path}", body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise LocalServiceError(
                f"The simulator at {self.base_url} does not answer {method} {path}: {error!r}"
            ) from error
        finally:
            connection.close()
        if response.status != 200:
            raise LocalServiceError(
                f"The simulator at {self.base_url} refuses {method} {path}: {answer['error']}"
            )
        return answer
