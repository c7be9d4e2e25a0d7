"""The control endpoint: JSON over the same server, for tests in other processes.

| call | what |
|---|---|
| ``GET /_control`` | port, and each exchange's URL, clock, latency and symbols |
| ``GET, POST, DELETE /_control/faults[?id=]`` | list, add (a `Fault`), lift |
| ``POST /_control/clock`` | set the shared clock (a `ClockConfig`) |
| ``POST /_control/exchange`` | change one exchange (an `ExchangeSettings`) |
| ``GET /_control/counters`` | requests by endpoint and by status |
| ``GET /_control/arrivals[?exchange=&endpoint=&since_ns=]`` | the log of requests |
| ``POST /_control/reset`` | as freshly started |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from crypto_pipeline.simulator.config import BudgetConfig, ClockConfig
from crypto_pipeline.simulator.faults import Fault
from crypto_pipeline.simulator.wire import Answer, HttpRequest

if TYPE_CHECKING:
    from crypto_pipeline.simulator.server import Simulator

Result = dict[str, object]


class ExchangeSettings(BaseModel):
    """Settings of one exchange; what is not sent stays.

    Attributes:
        latency: seconds added to each answer.
        clock_offset: seconds its clock is ahead of the shared one.
        budget: enforced from now on; null for none.
        listening: whether its own port accepts connections.
    """

    model_config = ConfigDict(extra="forbid")

    exchange: str
    latency: float | None = None
    clock_offset: float | None = None
    budget: BudgetConfig | None = None
    listening: bool | None = None


async def handle_control(simulator: Simulator, request: HttpRequest, path: str) -> Answer:
    """Answer one control request: 400 says what is wrong with it."""
    act = _ACTS.get((request.method, path.strip("/")))
    if act is None:
        return Answer.json({"error": f"there is no {request.method} /_control/{path}"}, status=404)
    try:
        return Answer.json(await act(simulator, request))
    except (ValueError, KeyError) as error:
        return Answer.json({"error": f"{type(error).__name__}: {error}"}, status=400)


async def _overview(simulator: Simulator, request: HttpRequest) -> Result:
    del request
    return {
        "port": simulator.port,
        "exchanges": {
            key: {
                "url": simulator.base_url(key),
                "now_ms": exchange.now_ms(),
                "clock_offset": exchange.clock_offset,
                "latency": exchange.latency,
                "symbols": list(exchange.config.symbols),
            }
            for key, exchange in simulator.exchanges.items()
        },
    }


async def _faults(simulator: Simulator, request: HttpRequest) -> Result:
    del request
    return {"faults": simulator.faults.listed()}


async def _add_fault(simulator: Simulator, request: HttpRequest) -> Result:
    return {"id": simulator.faults.add(Fault.model_validate_json(request.body))}


async def _lift_faults(simulator: Simulator, request: HttpRequest) -> Result:
    fault_id = request.query.get("id")
    simulator.faults.clear(None if fault_id is None else int(fault_id))
    return {}


async def _set_clock(simulator: Simulator, request: HttpRequest) -> Result:
    simulator.clock.set(ClockConfig.model_validate_json(request.body))
    return {}


async def _set_exchange(simulator: Simulator, request: HttpRequest) -> Result:
    settings = ExchangeSettings.model_validate_json(request.body)
    exchange = simulator.exchanges[settings.exchange]
    if settings.latency is not None:
        exchange.latency = settings.latency
    if settings.clock_offset is not None:
        exchange.clock_offset = settings.clock_offset
    if "budget" in settings.model_fields_set:
        exchange.budget.reset(settings.budget)
    if settings.listening is not None and exchange.config.port is None:
        raise ValueError(f"{settings.exchange} has no port of its own (port: 0 in its config)")
    if settings.listening:
        await simulator.start_listening(settings.exchange)
    elif settings.listening is not None:
        await simulator.stop_listening(settings.exchange)
    return {}


async def _counters(simulator: Simulator, request: HttpRequest) -> Result:
    del request
    return {"counters": simulator.arrivals.counters()}


async def _arrivals(simulator: Simulator, request: HttpRequest) -> Result:
    found = simulator.arrivals.since(
        exchange=request.query.get("exchange"),
        endpoint=request.query.get("endpoint"),
        time_ns=int(request.query.get("since_ns", "0")),
    )
    return {"arrivals": [one._asdict() for one in found]}


async def _reset(simulator: Simulator, request: HttpRequest) -> Result:
    del request
    simulator.reset()
    for key in simulator.exchanges:
        await simulator.start_listening(key)
    return {}


_ACTS: dict[tuple[str, str], Callable[[Simulator, HttpRequest], Awaitable[Result]]] = {
    ("GET", ""): _overview,
    ("GET", "faults"): _faults,
    ("POST", "faults"): _add_fault,
    ("DELETE", "faults"): _lift_faults,
    ("POST", "clock"): _set_clock,
    ("POST", "exchange"): _set_exchange,
    ("GET", "counters"): _counters,
    ("GET", "arrivals"): _arrivals,
    ("POST", "reset"): _reset,
}
