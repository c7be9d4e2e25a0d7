"""Services on this machine: the embedded PostgreSQL with TimescaleDB, and their child processes.

::

    postgres      who uses the server, and so when it starts and stops: ``LocalPostgres``
    server        the server's process
    cluster       the database's files and settings
    timescaledb   the extension's files
    apt           packages of another Debian suite
    privileges    running as an ordinary user when we are root
    processes     locks, detached children, ports

What runs *on* the database belongs elsewhere.
"""

from crypto_pipeline.local.postgres import (
    DAGSTER_DATABASE,
    DATABASE,
    LocalPostgres,
    ServerInfo,
)

__all__ = ["DAGSTER_DATABASE", "DATABASE", "LocalPostgres", "ServerInfo"]
