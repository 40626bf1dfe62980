"""How a connection of the kit becomes one for SQLAlchemy, and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from psycopg.abc import AdaptContext
from psycopg.rows import tuple_row
from psycopg.types import TypeInfo
from psycopg.types.hstore import register_hstore
from psycopg.types.json import set_json_dumps, set_json_loads
from psycopg.types.string import TextLoader

from serverless_pg_kit.session import AnyConnection, assign

REQUEST = "serverless_pg_kit_request"
"""The attribute of a connection under which its request is kept while SQLAlchemy has it: whoever drops the connection
drops the request, and the engine of the kit takes it back."""

ATTRIBUTES = frozenset({"cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max"})
"""What ``connect_args`` may hold: attributes of the connection object. All else is decided by the kit's settings."""


class Adapters(NamedTuple):
    """How an engine of SQLAlchemy wants values to be adapted; ``None`` leaves it to the connection."""

    loads: Callable[..., Any] | None = None
    dumps: Callable[..., Any] | None = None
    inet_as_text: bool = False
    hstore: TypeInfo | None = None

    def register(self, context: AdaptContext) -> None:
        """Register all with `context`."""
        if self.loads is not None:
            set_json_loads(self.loads, context)
        if self.dumps is not None:
            set_json_dumps(self.dumps, context)
        if self.inet_as_text:
            for name in ("inet", "cidr"):
                context.adapters.register_loader(name, TextLoader)
        if self.hstore is not None:
            register_hstore(self.hstore, context)


def check_arguments(args: tuple[Any, ...], arguments: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if ``connect_args`` holds what the kit's settings decide."""
    refused = [*map(repr, args), *sorted(arguments.keys() - ATTRIBUTES)]
    if refused:
        allowed = ", ".join(sorted(ATTRIBUTES))
        raise TypeError(
            f"connect_args: {refused[0]} is not allowed: it belongs into conninfo, a setting of the kit's engine"
            f" (allowed are {allowed})"
        )


def dress(conn: AnyConnection, request: object, adapters: Adapters, attributes: Mapping[str, Any]) -> None:
    """Give `conn`, which serves `request` and is idle, the attributes that SQLAlchemy expects. The end of the request
    takes them back."""
    adapters.register(conn)
    conn.row_factory = tuple_row
    if conn.autocommit:
        assign(conn, "autocommit", False)
    for name, value in attributes.items():
        setattr(conn, name, value)
    vars(conn)[REQUEST] = request
