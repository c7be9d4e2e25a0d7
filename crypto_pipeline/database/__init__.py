"""PostgreSQL with TimescaleDB: tables, migrations, writing and reading."""
