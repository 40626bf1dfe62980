"""Tools for tests: a real PostgreSQL server that lives as long as the test run, transactions that leave nothing behind,
and a clock on which pauses take no time."""

from __future__ import annotations

from serverless_pg_kit.testing.clock import InstantClock
from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.rollback import rolled_back
from serverless_pg_kit.testing.server import PostgresServer

__all__ = ["InstantClock", "PostgresServer", "ServerError", "rolled_back"]
