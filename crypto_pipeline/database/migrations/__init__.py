"""Alembic migrations: env.py runs them, versions/ holds them."""
