"""The way of a candle, step by step, between the outside world's modules and the orchestrator."""
