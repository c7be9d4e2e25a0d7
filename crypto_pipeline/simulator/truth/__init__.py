"""What the simulated exchanges truly have: the answer key for tests.

`Truth` knows every final candle and every trade of every series, independent of any clock.
"""

from __future__ import annotations

from crypto_pipeline.simulator.truth.series import Series, Truth

__all__ = ["Series", "Truth"]
