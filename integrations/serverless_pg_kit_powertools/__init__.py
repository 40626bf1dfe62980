"""serverless_pg_kit for Powertools for AWS Lambda (extra ``powertools``).

Each name below is imported when it is touched: a function that only takes the decorator does not load the event
handler, which alone takes longer to import than psycopg.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serverless_pg_kit_powertools.decorator import postgres_middleware
    from serverless_pg_kit_powertools.dependencies import connection, scope
    from serverless_pg_kit_powertools.logs import LoggerListener
    from serverless_pg_kit_powertools.measures import MetricsListener
    from serverless_pg_kit_powertools.resolvers import AsyncPostgresMiddleware, PostgresMiddleware
    from serverless_pg_kit_powertools.traces import trace_engine

__all__ = [
    "AsyncPostgresMiddleware",
    "LoggerListener",
    "MetricsListener",
    "PostgresMiddleware",
    "connection",
    "postgres_middleware",
    "scope",
    "trace_engine",
]

MODULES = {
    "AsyncPostgresMiddleware": "resolvers",
    "LoggerListener": "logs",
    "MetricsListener": "measures",
    "PostgresMiddleware": "resolvers",
    "connection": "dependencies",
    "postgres_middleware": "decorator",
    "scope": "dependencies",
    "trace_engine": "traces",
}
"""The names and the modules they are in."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            module = importlib.import_module(f"{__name__}.{MODULES[name]}")
        except ModuleNotFoundError as missing:
            advice = f'{missing}: pip install "serverless-pg-kit[powertools]"'
            raise ModuleNotFoundError(advice, name=missing.name) from missing
        return getattr(module, name)


def __dir__() -> list[str]:
    """Name what is loaded later, too."""
    return sorted({*globals(), *__all__})
