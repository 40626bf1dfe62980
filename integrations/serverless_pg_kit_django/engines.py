"""Which engine serves which database: one for each alias and process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.postgresql.base import DatabaseWrapper

from serverless_pg_kit import Engine
from serverless_pg_kit.aws_lambda import context_budget
from serverless_pg_kit_django.config import Recipe, recipe_of, settings_of

if TYPE_CHECKING:
    from typing import TypeAlias

    Made: TypeAlias = "list[tuple[Recipe, Engine]]"

_engines: dict[str, Made] = {}  # several for an alias only where its settings change, as in tests
_lock = threading.Lock()


def engine_for(alias: str = DEFAULT_DB_ALIAS) -> Engine:
    """Return the engine of this process for the database `alias`: for ``census()``, ``stats`` and ``add_listener``.

    It serves the ORM, if that database's ``ENGINE`` is this package. Raises ``ValueError`` for a database that is no
    PostgreSQL, and what `Engine` raises.
    """
    wrapper = connections[alias]
    if not isinstance(wrapper, DatabaseWrapper):
        raise ValueError(f"DATABASES[{alias!r}] is no PostgreSQL but {wrapper.vendor}")
    return engine_of(wrapper, wrapper.get_connection_params())


def budget(arguments: tuple[Any, ...], alias: str) -> float | None:
    """Return the seconds left by the Lambda context among `arguments`, less what the answer takes.

    ``None`` if there is no context, or the database `alias` is no PostgreSQL, as in some tests.
    """
    wrapper = connections[alias]
    return context_budget(arguments, engine_for(alias)) if isinstance(wrapper, DatabaseWrapper) else None


def engine_of(wrapper: DatabaseWrapper, params: Mapping[str, Any]) -> Engine:
    """Return the engine for `wrapper`, whose connections Django wants opened with `params`. Raises as `engine_for`."""
    recipe = recipe_of(wrapper, params)
    return _known(wrapper.alias, recipe) or _make(wrapper.alias, recipe)


def _known(alias: str, recipe: Recipe) -> Engine | None:
    return next((engine for known, engine in _engines.get(alias, ()) if known == recipe), None)


def _make(alias: str, recipe: Recipe) -> Engine:
    with _lock:  # all threads share one
        engine = _known(alias, recipe)
        if engine is None:
            engine = Engine(settings_of(recipe))
            _engines.setdefault(alias, []).append((recipe, engine))
        return engine


def engines_on(database: str | None) -> Iterator[Engine]:
    """Yield the engines of this process, of any alias, that connect to the `database` of that name."""
    for made in list(_engines.values()):
        for recipe, engine in list(made):
            if recipe.params.get("dbname") == database:
                yield engine
