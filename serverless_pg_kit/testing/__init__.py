"""Tools for tests: a real PostgreSQL server that lives as long as the test run, transactions that leave nothing behind,
a clock on which pauses take no time, and containers of Lambda functions."""

from __future__ import annotations

from serverless_pg_kit.testing.awslambda.container import LambdaContainer
from serverless_pg_kit.testing.awslambda.errors import (
    HandlerFailed,
    InitFailed,
    InvocationError,
    InvocationTimedOut,
    RuntimeExited,
)
from serverless_pg_kit.testing.awslambda.invocation import Invocation
from serverless_pg_kit.testing.clock import InstantClock
from serverless_pg_kit.testing.errors import ServerError
from serverless_pg_kit.testing.rollback import rolled_back
from serverless_pg_kit.testing.server import PostgresServer

__all__ = [
    "HandlerFailed",
    "InitFailed",
    "InstantClock",
    "Invocation",
    "InvocationError",
    "InvocationTimedOut",
    "LambdaContainer",
    "PostgresServer",
    "RuntimeExited",
    "ServerError",
    "rolled_back",
]
