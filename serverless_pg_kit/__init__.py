"""Direct PostgreSQL connections that stay healthy in serverless functions.

The names below are the public interface; `serverless_pg_kit.events` has the events, `serverless_pg_kit.testing` a
throw-away server for tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serverless_pg_kit.aws_lambda import default_async_engine, default_engine, with_db
from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.classify import FailureKind, Rule
from serverless_pg_kit.decisions.cleaning import CleanReport
from serverless_pg_kit.engine import Engine
from serverless_pg_kit.errors import (
    AcquireTimeout,
    CommitUnknown,
    ConnectRejected,
    CredentialsRejected,
    ServerlessPgError,
    SettingsError,
    TooManyConnections,
    TransactionFailed,
)
from serverless_pg_kit.scope import Scope
from serverless_pg_kit.settings import Settings
from serverless_pg_kit.statements import Statements

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from serverless_pg_kit.aio.engine import AsyncEngine

__all__ = [
    "AcquireTimeout",
    "AsyncEngine",
    "Census",
    "CleanReport",
    "CommitUnknown",
    "ConnectRejected",
    "CredentialsRejected",
    "Engine",
    "FailureKind",
    "Rule",
    "Scope",
    "ServerlessPgError",
    "Settings",
    "SettingsError",
    "Statements",
    "TooManyConnections",
    "TransactionFailed",
    "default_async_engine",
    "default_engine",
    "with_db",
]


def __getattr__(name: str) -> Any:
    """Load the async shell when it is first asked for: most functions never need it."""
    if name != "AsyncEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serverless_pg_kit.aio.engine import AsyncEngine

    globals()[name] = AsyncEngine
    return AsyncEngine


def __dir__() -> list[str]:
    """Name what is loaded later, too."""
    return sorted({*globals(), *__all__})
