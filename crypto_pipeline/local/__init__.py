"""Services on this machine: the embedded PostgreSQL with TimescaleDB, child processes."""
