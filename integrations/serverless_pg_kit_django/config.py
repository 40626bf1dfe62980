"""Django's settings of a database, as those of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import make_conninfo

from serverless_pg_kit import Settings, SettingsError

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper

OF_CONNECTIONS = ("cursor_factory", "row_factory", "prepare_threshold")
"""What Django gives psycopg for the connection object, not for the server."""


class Recipe(NamedTuple):
    """What an engine is made of: psycopg's parameters, what sessions start from, and the kit's settings by name."""

    params: dict[str, Any]
    session: dict[str, str]
    names: dict[str, Any]


def kit_names(wrapper: DatabaseWrapper) -> dict[str, Any]:
    """Return the kit's settings for the database of `wrapper`: ``OPTIONS["serverless"]`` over ``SERVERLESS_PG``.

    Raises ``ImproperlyConfigured`` for what is no mapping.
    """
    everywhere = getattr(settings, "SERVERLESS_PG", None) or {}
    own = wrapper.settings_dict["OPTIONS"].get("serverless") or {}
    for place, names in (("SERVERLESS_PG", everywhere), ("OPTIONS['serverless']", own)):
        if not isinstance(names, Mapping):
            raise ImproperlyConfigured(f"{place} has to be a dictionary of settings, not {type(names).__name__}")
    return {**everywhere, **own}


def recipe_of(wrapper: DatabaseWrapper, params: Mapping[str, Any]) -> Recipe:
    """Return what the engine for `wrapper` is made of. `params` are Django's, for psycopg."""
    session = {
        "timezone": wrapper.timezone_name,
        "role": wrapper.settings_dict["OPTIONS"].get("assume_role"),
    }
    return Recipe(
        {name: value for name, value in params.items() if name != "serverless"},
        {name: value for name, value in session.items() if value},
        kit_names(wrapper),
    )


def check_names(alias: str, names: Mapping[str, Any]) -> None:
    """Raise ``ImproperlyConfigured`` for the first of `names` that is no setting, or whose value is not allowed."""
    if names in _checked:  # every thread makes a wrapper, and under ASGI every request has a thread of its own
        return
    if "conninfo" in names:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: conninfo is made of NAME, HOST, USER and OPTIONS; drop it")
    try:
        Settings.from_env(**names)
    except SettingsError as error:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: {error}") from error
    _checked.append(names)


_checked: list[Mapping[str, Any]] = []


def settings_of(recipe: Recipe) -> Settings:
    """Return the settings of the engine that `recipe` describes.

    Raises `SettingsError`, and ``psycopg.ProgrammingError`` for a parameter that libpq does not know.
    """
    params = dict(recipe.params)
    context, _ = params.pop("context"), params.pop("autocommit", None)
    own = {name: params.pop(name) for name in OF_CONNECTIONS if name in params}
    names = dict(recipe.names)
    names["configure"] = configuration(context, own, names.get("configure"))
    names["session"] = {**recipe.session, **names.get("session", {})}
    return Settings.from_env(**names, conninfo=make_conninfo(**params))


def configuration(
    context: AdaptersMap, attributes: Mapping[str, Any], then: Callable[[Any], object] | None
) -> Callable[[Any], None]:
    """Return what makes of a plain connection one of Django's: its adapters and `attributes`; `then` is the user's."""

    def configure(conn: Any) -> None:
        conn._adapters = AdaptersMap(context)  # what psycopg does with its argument `context`; there is no setter
        for name, value in attributes.items():
            setattr(conn, name, value)
        if then is not None:
            then(conn)

    return configure
