"""SQLAlchemy on the connections of the kit: Core, ORM, Alembic, Flask-SQLAlchemy; blocking and async.

::

    from serverless_pg_kit import Engine
    from serverless_pg_kit_sqlalchemy import create_engine

    engine = create_engine(Engine())
"""

from __future__ import annotations

from sqlalchemy.dialects import registry

from serverless_pg_kit_sqlalchemy.engines import DRIVERNAME, create_async_engine, create_engine, engine_options

__all__ = ["create_async_engine", "create_engine", "engine_options"]

registry.register(DRIVERNAME.replace("+", "."), "serverless_pg_kit_sqlalchemy.dialect", "ServerlessPgDialect")
