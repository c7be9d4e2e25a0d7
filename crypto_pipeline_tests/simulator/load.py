"""What a page costs the simulator: ``python -m crypto_pipeline_tests.simulator.load``.

Asks for the same days of history again and again over a few kept-alive connections and reports
requests a second and the server's own CPU time a page (from the operating system), cold and warm.
"""

import asyncio
import sys
import time

import aiohttp
import psutil

from crypto_pipeline.core.timeframes import DAY_MS, MINUTE_MS
from crypto_pipeline.simulator import SimulatorConfig, running_simulator

START_MS = 19_700 * DAY_MS
SYMBOLS = [f"{base}/USDT" for base in ("BTC", "ETH", "SOL", "XRP", "ADA")]
DAYS = 30
CONNECTIONS = 4


def binance_pages() -> list[str]:
    """Pages of 1,000 rows, as a backfill asks for them."""
    return [
        f"/binance/api/v3/klines?symbol={symbol.replace('/', '')}&interval=1m&limit=1000"
        f"&startTime={start}&endTime={start + 999 * MINUTE_MS}"
        for symbol in SYMBOLS
        for start in range(START_MS, START_MS + DAYS * DAY_MS, 1_000 * MINUTE_MS)
    ]


def kraken_pages() -> list[str]:
    """The newest 720 rows and the forming one, which is made anew for each request."""
    return ["/kraken/0/public/OHLC?pair=XBTUSD&interval=1"] * 1_000


def coinbase_pages() -> list[str]:
    """Pages of 300 rows."""
    return [
        f"/coinbaseexchange/products/BTC-USD/candles?granularity=60&start={start}&end={start + 17_940}"
        for start in range(START_MS // 1_000, START_MS // 1_000 + 1_000 * 18_000, 18_000)
    ]


def small_pages() -> list[str]:
    """Pages of 5 rows: the cost of a request itself."""
    return [url.replace("limit=1000", "limit=5") for url in binance_pages()]


async def fetch_all(base_url: str, urls: list[str]) -> int:
    """Bytes received."""
    waiting = iter(urls)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def work() -> int:
            received = 0
            for url in waiting:
                async with session.get(base_url + url) as response:
                    assert response.status == 200
                    received += len(await response.read())
            return received

        return sum(await asyncio.gather(*(work() for _ in range(CONNECTIONS))))


def main() -> None:
    config = SimulatorConfig.for_pipeline(
        {
            "binance": ("binance", SYMBOLS),
            "kraken": ("kraken", ["BTC/USD"]),
            "coinbaseexchange": ("coinbaseexchange", ["BTC/USD"]),
        }
    )
    with running_simulator(config) as simulator:
        server = psutil.Process(simulator.pid)
        for name, urls in (
            ("binance 1,000 rows, cold", binance_pages()),
            ("binance 1,000 rows, warm", binance_pages() * 10),
            ("binance 5 rows, warm", small_pages() * 10),
            ("kraken 720 + forming", kraken_pages()),
            ("coinbaseexchange 300 rows, cold", coinbase_pages()),
            ("coinbaseexchange 300 rows, warm", coinbase_pages() * 3),
        ):
            cpu = sum(server.cpu_times()[:2])
            began = time.perf_counter()
            received = asyncio.run(fetch_all(simulator.base_url, urls))
            seconds = time.perf_counter() - began
            cpu = sum(server.cpu_times()[:2]) - cpu
            sys.stdout.write(
                f"{name}: {len(urls)} pages, {received / len(urls) / 1e3:.0f} kB each, "
                f"{len(urls) / seconds:.0f}/s, server CPU {cpu / len(urls) * 1e3:.3f} ms a page, "
                f"{server.memory_info().rss / 1e6:.0f} MB\n"
            )


if __name__ == "__main__":
    main()
