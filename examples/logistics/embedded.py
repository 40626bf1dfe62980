"""A throw-away PostgreSQL with the example's tables and data, to try it with. Needs the extra ``demo``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from serverless_pg_kit.testing import PostgresServer


@contextmanager
def embedded_server() -> Iterator[PostgresServer]:
    """Run it for the length of a block; ``server.dsn`` is the URL of an ordinary role that owns the tables."""
    with PostgresServer(max_connections=30) as server:
        with psycopg.connect(server.dsn) as conn:
            for name in ("schema.sql", "data.sql"):
                conn.execute((Path(__file__).parent / name).read_bytes())
        yield server
