"""What users call: SQLAlchemy's engines, made over an engine of the kit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncEngine as SqlAlchemyAsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as create_sqlalchemy_async_engine

from serverless_pg_kit import AsyncEngine, Engine

DRIVERNAME = "postgresql+serverless_pg_kit"

REFUSED: Mapping[str, str] = {
    "pool_size": "the setting is max_size of the kit's engine",
    "max_overflow": "there is no overflow: the setting is max_size of the kit's engine",
    "pool_timeout": "the setting is max_wait of the kit's engine",
    "pool_recycle": "the setting is max_lifetime of the kit's engine",
    "pool_use_lifo": "the connection used last always goes first",
    "poolclass": "the kit's engine keeps the connections",
    "pool": "the kit's engine keeps the connections",
    "creator": "the kit's engine opens the connections",
    "async_creator": "the kit's engine opens the connections",
    "client_encoding": "it belongs into conninfo, a setting of the kit's engine",
    "url": "where the server is belongs into conninfo, a setting of the kit's engine",
    "serverless_engine": "the kit's engine is the first argument",
}
"""What SQLAlchemy calls what the kit's engine decides."""


def create_engine(engine: Engine, **options: Any) -> sqlalchemy.Engine:
    """Return an engine of SQLAlchemy whose connections are those of `engine`.

    `options` are keyword arguments of ``sqlalchemy.create_engine``. Those about pooling are settings of `engine` here
    and raise ``TypeError``. Nothing is connected to before the first use. What cannot be had then raises
    ``sqlalchemy.exc.OperationalError`` with the kit's error as its ``orig``. ``dispose()`` closes the connections of
    `engine` that are idle; closing `engine` is up to its maker.
    """
    checked(engine, Engine)
    return sqlalchemy.create_engine(**engine_options(engine, **options))


def create_async_engine(engine: AsyncEngine, **options: Any) -> SqlAlchemyAsyncEngine:
    """Return an async engine of SQLAlchemy whose connections are those of `engine`.

    Everything else is as with `create_engine`.
    """
    checked(engine, AsyncEngine)
    return create_sqlalchemy_async_engine(**engine_options(engine, **options))


def engine_options(engine: Engine | AsyncEngine, **options: Any) -> dict[str, Any]:
    """Return `options` and what else ``sqlalchemy.create_engine`` has to be given, the ``url`` too, to use `engine`.

    For whatever calls that by itself, as Flask-SQLAlchemy does with ``SQLALCHEMY_ENGINE_OPTIONS``. The URL holds no
    password. Raises ``TypeError`` for an option that `engine` decides.
    """
    checked(engine, (Engine, AsyncEngine))
    for name in options.keys() & REFUSED.keys():
        raise TypeError(f"{name} is not allowed here: {REFUSED[name]}")
    return {"url": url_of(engine), "serverless_engine": engine, **options}


def checked(engine: object, wanted: type | tuple[type, ...]) -> None:
    """Raise ``TypeError`` if `engine` is not what is `wanted`: SQLAlchemy's own, an URL, or the other shell's."""
    if not isinstance(engine, wanted):
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        names = " or ".join(f"serverless_pg_kit.{kind.__name__}" for kind in kinds)
        raise TypeError(f"pass a {names}, not {type(engine).__module__}.{type(engine).__name__}")


def url_of(engine: Engine | AsyncEngine) -> sqlalchemy.URL:
    """Return the URL that stands for `engine` where SQLAlchemy shows one."""
    params = engine.settings.parameters(os.environ)
    port = params.get("port", "")
    return sqlalchemy.URL.create(
        DRIVERNAME,
        username=params.get("user"),
        host=params.get("host"),
        port=int(port) if port.isdecimal() else None,
        database=params.get("dbname"),
    )
