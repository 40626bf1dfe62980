"""Starlette and FastAPI on the kit: each request is one on an engine, and ends before its answer does.

`ServerlessPgMiddleware` begins and ends requests, `connection` and `sync_connection` are dependencies for FastAPI.
"""

from __future__ import annotations

from serverless_pg_kit_asgi.dependencies import (
    connection,
    connection_of,
    sync_connection,
    sync_connection_of,
)
from serverless_pg_kit_asgi.middleware import ServerlessPgMiddleware

__all__ = ["ServerlessPgMiddleware", "connection", "connection_of", "sync_connection", "sync_connection_of"]
