"""What the middleware may be given, looked at when it is made."""

from __future__ import annotations

from typing import Any

from serverless_pg_kit import AsyncEngine, Engine, SettingsError, default_async_engine


def chosen_engine(engine: AsyncEngine | Engine | None, settings: dict[str, Any]) -> AsyncEngine | Engine:
    """Return `engine`, or one made of `settings`, or the default one. Raises `SettingsError` and ``TypeError``."""
    if engine is None:
        return AsyncEngine(**settings) if settings else default_async_engine()
    if settings:
        raise TypeError(f"pass an engine or single settings, not both: {', '.join(settings)}")
    if not isinstance(engine, (AsyncEngine, Engine)):
        raise TypeError(f"engine has to be an AsyncEngine or an Engine, not {type(engine).__name__}")
    return engine


def check_deadline(seconds: object) -> None:
    """Raise `SettingsError` for a `deadline` that is no time."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (is_number and seconds > 0):  # type: ignore[operator]
        raise SettingsError(f"deadline={seconds!r} is not allowed: it has to be a number of seconds above 0, or None")
