"""What an app says in its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serverless_pg_kit import Engine, Settings, SettingsError
from serverless_pg_kit.settings import ENV_PREFIX
from serverless_pg_kit_flask.deadline import Deadline, checked

DEADLINE = f"{ENV_PREFIX}DEADLINE"
"""The one key that is Flask's and no setting."""


def own_keys(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the items ``SERVERLESS_PG_*`` of `config` for the extension `name`, whose keys begin with that."""
    prefix = f"{name.upper()}_" if name else ""
    return {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix + ENV_PREFIX)}


def make_engine(keys: Mapping[str, Any]) -> Engine:
    """Return an engine with the settings in `keys`. Raises `SettingsError`."""
    return Engine(Settings.from_config({key: value for key, value in keys.items() if key != DEADLINE}))


def check_engine(engine: object, keys: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` if `engine` is none that blocks, and `SettingsError` if `keys` has settings beside it."""
    if not isinstance(engine, Engine):
        raise TypeError(f"Flask's views block: pass an Engine, not {type(engine).__name__}")
    unused = sorted(keys.keys() - {DEADLINE})
    if unused:
        raise SettingsError(f"{unused[0]} has no effect beside an engine that is passed: set it where that is made")


def read_deadline(keys: Mapping[str, Any], given: Deadline) -> Deadline:
    """Return the deadline `given` in code, or else that in `keys`. Raises `SettingsError` for a bad one."""
    value = keys.get(DEADLINE) if given is None else given
    return checked(read_number(value) if isinstance(value, str) else value)


def read_number(text: str) -> float | str | None:
    """Return the number in `text`, ``None`` for ``none``, or `text` if it is neither."""
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        return text
