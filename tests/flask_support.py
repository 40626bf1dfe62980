"""An app with the extension, for the tests of Flask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from psycopg import Connection

from serverless_pg_kit import Engine
from serverless_pg_kit_flask import ServerlessPg


@dataclass
class Site:
    """An app with the extension attached."""

    app: Flask
    pg: ServerlessPg

    @property
    def client(self) -> FlaskClient:
        """A new client of the app."""
        return self.app.test_client()

    @property
    def engine(self) -> Engine:
        """The engine of the app."""
        engine: Engine = self.app.extensions["serverless_pg"].engine
        return engine

    @property
    def conn(self) -> Connection[Any]:
        """The connection of the code that asks."""
        return self.pg.connection

    def insert(self, entry: int) -> None:
        """Write into the ledger."""
        self.conn.execute("insert into ledger values (%s)", [entry])


MakeSite = Callable[..., Site]
