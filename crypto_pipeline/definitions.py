"""Entry point for Dagster: ``dagster -m crypto_pipeline.definitions``."""

from crypto_pipeline.orchestration.build import build_defs

defs = build_defs()
