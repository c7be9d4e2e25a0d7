"""Hypothesis, tuned for a suite that must be quick and never flaky."""

from hypothesis import settings

settings.register_profile("core", deadline=None, database=None, derandomize=True, max_examples=80)
settings.load_profile("core")
