"""What a newcomer's first command does, as a newcomer runs it."""

from __future__ import annotations

from pathlib import Path

import psutil

from crypto_pipeline_tests.deployment.conftest import deployed


def test_the_demo_has_candles_of_every_exchange_and_a_ui_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    """No network, key, database or Docker: one command, candles in a hypertable, Ctrl-C ends it."""
    with deployed(tmp_path / "home", "--demo") as demo:
        demo.wait(
            lambda: "Candles of every exchange are there" in demo.said(),
            seconds=180,
            what="candles of every exchange",
        )
        demo.wait(
            lambda: len(demo.rows(_YESTERDAY)) == 3, seconds=120, what="a whole day of history"
        )
        demo.wait(lambda: len(demo.rows(_FRESH)) == 3, seconds=150, what="candles of these minutes")
        assert demo.rows(_HYPERTABLES) == [("candles",)]
        assert demo.rows("SELECT count(*) FROM rejected_candles") == [(0,)]
        assert {exchange for (exchange,) in demo.rows("SELECT exchange FROM live_candles")} == {
            "binance",
            "coinbaseexchange",
            "kraken",
        }
        family = [demo.process.pid]
        family += [child.pid for child in psutil.Process(family[0]).children(recursive=True)]
        assert {address for pid in family for address in _listening(pid)} == {"127.0.0.1"}


def _listening(pid: int) -> list[str]:
    """Addresses a process listens on; none if it has ended, as runs do."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.NoSuchProcess:
        return []
    return [each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN]


_HYPERTABLES = "SELECT hypertable_name FROM timescaledb_information.hypertables"
_YESTERDAY = """
SELECT exchange FROM candles
WHERE open_time >= date_trunc('day', now(), 'UTC') - interval '1 day'
  AND open_time < date_trunc('day', now(), 'UTC') AND timeframe = '1m' AND symbol LIKE 'BTC/%'
GROUP BY exchange HAVING count(*) > 1300
"""
_FRESH = """
SELECT exchange FROM candles WHERE open_time > now() - interval '5 minutes' GROUP BY exchange
"""
