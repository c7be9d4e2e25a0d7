"""Dagster: one module per concept. What a candle is stays in crypto_pipeline.core."""
