from __future__ import annotations

import functools
import importlib.util
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psycopg
import pytest
from blocking import blocking_engine
from programs import environ
from proxy import Proxy
from support import debian_15, server_versions, shells

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer

MakeEngine = Callable[..., Engine]

FRAMEWORKS: dict[str, str] = {
    "asgi": "fastapi",
    "django": "django",
    "faas": "functions_framework",
    "flask": "flask",
    "powertools": "aws_lambda_powertools",
    "sqlalchemy": "flask_sqlalchemy",
}
"""Which module the tests in a folder of ``integrations`` need. tox gives every framework environments of its own."""

collect_ignore = [
    f"integrations/{folder}" for folder, module in FRAMEWORKS.items() if importlib.util.find_spec(module) is None
]
if importlib.util.find_spec("moto") is None:  # which fakes AWS
    collect_ignore.append("aws")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's own decides a test."""
    for name in list(os.environ):
        if name.startswith(("SERVERLESS_PG_", "PG", "AWS_LAMBDA_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", params=server_versions())
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server with room for many connections, in each version."""
    bin_dir = debian_15() if request.param == 15 else None
    with PostgresServer(None if bin_dir else request.param, bin_dir=bin_dir, max_connections=100) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_server() -> Iterator[PostgresServer]:
    """A server with eight slots, of which an ordinary role can reach five."""
    with PostgresServer(max_connections=8) as running:
        yield running


@pytest.fixture(params=shells())
def shell(request: pytest.FixtureRequest) -> MakeEngine:
    """Each of the shells: what makes an engine of it."""
    return Engine if request.param == "sync" else blocking_engine


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> str:
    """The name of this test's connections: each test has its own, so that no test ends another's connections."""
    return f"test {zlib.crc32(request.node.name.encode())}"


@pytest.fixture
def variables(server: PostgresServer, fleet: str) -> Mapping[str, str]:
    """The environment of programs whose engines connect to ``server``."""
    return environ(server, fleet)


@pytest.fixture
def engines(fleet: str, shell: MakeEngine) -> Iterator[MakeEngine]:
    """Make engines of each shell that are closed at the end of the test."""
    made: list[Engine] = []

    def make(**names: Any) -> Engine:
        made.append(shell(**{"application_name": fleet} | names))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def make_engine(engines: MakeEngine, server: PostgresServer) -> MakeEngine:
    """Make engines on ``server``, as its ordinary role."""
    return functools.partial(engines, conninfo=server.dsn)


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    """A proxy in front of ``server``."""
    with Proxy(server.host, server.port) as running:
        yield running


@pytest.fixture
def superuser(server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to the application's database."""
    with psycopg.connect(server.superuser_dsn, dbname="app", autocommit=True) as conn:
        yield conn


@pytest.fixture
def ledger(superuser: psycopg.Connection[Any]) -> str:
    """The name of an empty table that the ordinary role may use."""
    superuser.execute("drop table if exists ledger")
    superuser.execute("create table ledger (entry int primary key deferrable initially deferred)")
    superuser.execute("grant all on ledger to app")
    return "ledger"


@pytest.fixture(scope="session")
def german_server() -> Iterator[PostgresServer]:
    """A server whose messages are German, with five reachable slots."""
    with PostgresServer(bin_dir=debian_15(), max_connections=8, language="de") as running:
        yield running
