"""Talking to exchanges through ccxt. What the answers mean is crypto_pipeline.core's."""
