"""Tools for tests: a real PostgreSQL server that lives as long as the test run."""

from __future__ import annotations

from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.server import PostgresServer

__all__ = ["PostgresServer", "ServerError"]
