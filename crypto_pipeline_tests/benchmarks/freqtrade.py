"""freqtrade's ``download-data``, where it is installed: in an environment of its own, as a user has it.

It asks the same simulator by the same ccxt, without the monthly archives (which the simulator does not
have) and without a database: it stores files only. Its range ends at the end of the last day; it takes
the candles after it that come with the last page.
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pyarrow import feather


def command(
    program: str, *, folder: Path, ccxt: dict[str, Any], symbols: list[str], first: date, last: date
) -> list[str]:
    """The call that downloads these days into a new ``folder``."""
    config = {
        "exchange": {
            "name": "binance",
            "only_from_ccxt": True,
            "pair_whitelist": symbols,
            "ccxt_config": ccxt,
        },
        "pairlists": [{"method": "StaticPairList"}],
        "stake_currency": "USDT",
        "stake_amount": 10,
        "max_open_trades": 1,
        "dry_run": True,
        "entry_pricing": {"use_order_book": True},
        "exit_pricing": {"use_order_book": True},
    }
    (folder / "user").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    call = [program, "download-data", "--config", str(folder / "config.json")]
    call += ["--userdir", str(folder / "user"), "--datadir", str(folder / "data")]
    call += ["--timerange", f"{first:%Y%m%d}-{last + timedelta(days=1):%Y%m%d}"]
    return [*call, "--timeframes", "1m", "--pairs", *symbols]


def stored(folder: Path) -> dict[str, int]:
    """How many rows each symbol's file has."""
    return {
        path.name.partition("-")[0].replace("_", "/"): feather.read_table(path).num_rows
        for path in (folder / "data").glob("*-1m.feather")
    }
