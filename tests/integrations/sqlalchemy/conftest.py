from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy_stage import Make, Stage
from support import shells

from serverless_pg_kit.testing import PostgresServer


@pytest.fixture(params=shells())
def make(request: pytest.FixtureRequest, server: PostgresServer, fleet: str) -> Iterator[Make]:
    """Make stages over each shell; `options` are for SQLAlchemy, all else is settings."""
    made: list[Stage] = []

    def one(options: dict[str, Any] | None = None, **settings: Any) -> Stage:
        names = {"conninfo": server.dsn, "application_name": fleet, "census_ttl": 3600} | settings
        made.append(Stage(request.param, names, options or {}))
        return made[-1]

    yield one
    for stage in made:
        stage.close()


@pytest.fixture
def stage(make: Make) -> Stage:
    """A stage with the defaults."""
    return make()
