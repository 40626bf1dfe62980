"""System checks: settings of Django that hurt where containers come and go, or that do nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.core.checks import CheckMessage, Warning
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

from serverless_pg_kit.decisions.pooler import pooler_of
from serverless_pg_kit_django.config import kit_names
from serverless_pg_kit_django.middleware import ServerlessPgMiddleware
from serverless_pg_kit_django.wrapper import EngineConnections

TAG = "serverless_pg_kit"
MIDDLEWARE = f"{ServerlessPgMiddleware.__module__}.{ServerlessPgMiddleware.__qualname__}"


class Rule(NamedTuple):
    """A setting of a database that should be another one; `on_kit` tells whether the kit's backend serves it."""

    id: str
    on_kit: bool
    applies: Callable[[DatabaseWrapper], bool]
    text: str
    hint: str


def option(name: str) -> Callable[[DatabaseWrapper], bool]:
    """Return what tells whether the entry `name` of ``OPTIONS`` is set."""
    return lambda wrapper: bool(wrapper.settings_dict["OPTIONS"].get(name))


def own(name: str) -> Callable[[DatabaseWrapper], bool]:
    """Return what tells whether the setting `name` of Django's is neither empty nor 0; ``None`` keeps for ever."""
    return lambda wrapper: wrapper.settings_dict[name] is None or bool(wrapper.settings_dict[name])


def lacks_client_cursors(wrapper: DatabaseWrapper) -> bool:
    """Tell whether server-side cursors are on although a pooler stands between, by setting or host name."""
    host = (str(wrapper.settings_dict["HOST"]) or "").partition(",")[0]
    pooler = pooler_of(kit_names(wrapper).get("pooler", "auto"), host)
    return pooler is not None and not wrapper.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS")


RULES = (
    Rule(
        "W001",
        True,
        own("CONN_MAX_AGE"),
        "CONN_MAX_AGE has no effect: connections are kept by the engine, between requests and across threads.",
        "Remove it. max_lifetime and lease in OPTIONS['serverless'] say how long connections live.",
    ),
    Rule(
        "W002",
        True,
        option("pool"),
        "OPTIONS['pool'] takes Django's own pool instead of the kit's engine.",
        "Remove it. max_size in OPTIONS['serverless'] bounds the connections of a process.",
    ),
    Rule(
        "W003",
        True,
        own("CONN_HEALTH_CHECKS"),
        "CONN_HEALTH_CHECKS has no effect: the engine tries every connection before it gives it out.",
        "Remove it.",
    ),
    Rule(
        "W004",
        False,
        own("CONN_MAX_AGE"),
        "CONN_MAX_AGE lets every frozen container hold a connection for good, and under ASGI every request leak one.",
        "Set ENGINE to 'serverless_pg_kit_django', or CONN_MAX_AGE to 0.",
    ),
    Rule(
        "W005",
        False,
        option("pool"),
        "OPTIONS['pool'] opens four connections in every container, which nobody closes while it is frozen.",
        "Set ENGINE to 'serverless_pg_kit_django' and remove OPTIONS['pool'].",
    ),
    Rule(
        "W006",
        False,
        option("serverless"),
        "OPTIONS['serverless'] is for the kit's backend; psycopg will refuse it.",
        "Set ENGINE to 'serverless_pg_kit_django'.",
    ),
    Rule(
        "W007",
        True,
        lacks_client_cursors,
        "Server-side cursors, as QuerySet.iterator() uses them outside of transactions, do not work behind a pooler.",
        "Set DISABLE_SERVER_SIDE_CURSORS to True.",
    ),
)


def check_databases(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """Return a warning for each setting of a PostgreSQL database that hurts or does nothing."""
    return [
        Warning(f"DATABASES[{wrapper.alias!r}]: {rule.text}", hint=rule.hint, id=f"{TAG}.{rule.id}")
        for wrapper in connections.all()
        if isinstance(wrapper, DatabaseWrapper)
        for rule in RULES
        if rule.on_kit == isinstance(wrapper, EngineConnections) and rule.applies(wrapper)
    ]


def check_middleware(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[CheckMessage]:
    """Return a warning if the middleware is missing, or comes too late to give all connections their deadline."""
    return list(_middleware_warnings(list(settings.MIDDLEWARE)))


def _middleware_warnings(middleware: list[str]) -> Iterator[CheckMessage]:
    if MIDDLEWARE not in middleware:
        yield Warning(
            "The kit's middleware is missing: requests from AWS Lambda have no deadline, views no request.db.",
            hint=f"Put {MIDDLEWARE!r} first in MIDDLEWARE, or this check's id into SILENCED_SYSTEM_CHECKS.",
            id=f"{TAG}.W008",
        )
    elif middleware[0] != MIDDLEWARE:
        yield Warning(
            "The kit's middleware is not the first: what acquires a connection before it knows of no deadline.",
            hint=f"Put {MIDDLEWARE!r} first in MIDDLEWARE.",
            id=f"{TAG}.W009",
        )
