"""Direct PostgreSQL connections that stay healthy in serverless functions.

The names below are the public interface; `serverless_pg_kit.events` has the events, `serverless_pg_kit.testing` a
throw-away server for tests.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from serverless_pg_kit.aio.engine import AsyncEngine
    from serverless_pg_kit.aws_lambda import default_async_engine, default_engine, with_db
    from serverless_pg_kit.shutdown import close_on_sigterm

__version__ = "0.1.0.dev0"

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
    "close_on_sigterm",
    "default_async_engine",
    "default_engine",
    "with_db",
]

LATE = {
    "AsyncEngine": "serverless_pg_kit.aio.engine",
    "close_on_sigterm": "serverless_pg_kit.shutdown",
    "default_async_engine": "serverless_pg_kit.aws_lambda",
    "default_engine": "serverless_pg_kit.aws_lambda",
    "with_db": "serverless_pg_kit.aws_lambda",
}
"""Names that are imported when they are touched, with their modules: a cold start pays for what it needs."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(LATE[name]), name)
        return value


def __dir__() -> list[str]:
    """Name what is loaded later, too."""
    return sorted({*globals(), *__all__})
