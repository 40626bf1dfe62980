"""Apps with the extension, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask_support import MakeSite, Site

from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_flask import ServerlessPg


@pytest.fixture
def make_site(server: PostgresServer, fleet: str) -> Iterator[MakeSite]:
    """Make sites on ``server``: the first argument is the configuration, others are for the extension."""
    sites: list[Site] = []

    def make(config: dict[str, Any] | None = None, kind: type[Flask] = Flask, **options: Any) -> Site:
        app = kind("site")
        if "engine" not in options:
            app.config.update({"SERVERLESS_PG_CONNINFO": server.dsn, "SERVERLESS_PG_APPLICATION_NAME": fleet})
        app.config.update(config or {})
        sites.append(Site(app, ServerlessPg(app, **options)))
        return sites[-1]

    yield make
    for site in sites:
        assert site.engine.stats.in_use == 0
        site.engine.close()


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with nothing but the extension."""
    return make_site()
