"""crypto_pipeline: a candle store that never silently loses or invents a candle."""
