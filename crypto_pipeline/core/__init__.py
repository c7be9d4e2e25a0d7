"""The pure core: candles, rules, planning. No orchestrator, database, exchange, file or clock."""
