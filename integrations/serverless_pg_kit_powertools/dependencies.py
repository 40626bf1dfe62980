"""What ``Depends`` hands to a route. It reads what the middleware has begun, and ends nothing.

For Powertools from `DEPENDS_SINCE` on; ``app.context["db"]`` works in all.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

try:
    from aws_lambda_powertools.event_handler import Request
except ImportError as _missing:
    raise ImportError(
        'Depends needs Powertools 3.28; before, take app.context["db"].connection or engine.connection'
    ) from _missing

from serverless_pg_kit.scope import Work
from serverless_pg_kit.scope_base import WorkBase

KEY = "db"
"""The key that middlewares use unless they are told another."""


def scope(request: Request) -> Any:
    """The request (`Scope`) that the middleware with the key ``"db"`` began, for ``Depends(scope)``: it acquires
    nothing before its `connection` is touched.

    Raises ``RuntimeError`` where no such middleware is around the route.
    """
    found = request.context.get(KEY)
    if not isinstance(found, WorkBase):
        raise RuntimeError("no request is open: PostgresMiddleware(engine) has to be around this route")
    return found


def connection(request: Request) -> Connection[Any]:
    """The connection of that request, acquired now, for ``Depends(connection)``. The middleware ends it.

    Raises what `Engine.request` raises, what `scope` raises, and ``RuntimeError`` with an `AsyncEngine`: nobody awaits
    a dependency.
    """
    found = scope(request)
    if not isinstance(found, Work):
        raise RuntimeError("with an AsyncEngine take Depends(scope), and await its connection")
    return found.connection
