"""A pytest plugin: a PostgreSQL for tests, an engine on it, and requests that leave nothing behind.

pytest loads it wherever the kit is installed. So it imports nothing but pytest, and does nothing, until a test asks for
one of its fixtures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from psycopg import Connection

    from serverless_pg_kit import Engine
    from serverless_pg_kit.testing import InstantClock, PostgresServer

OPTIONS = {
    "serverless_pg_version": "major version of the PostgreSQL for tests (default: the newest that can be found)",
    "serverless_pg_bin_dir": "folder with the programs of the PostgreSQL for tests, such as /usr/lib/postgresql/15/bin",
    "serverless_pg_max_connections": "slots of the PostgreSQL for tests (default: 100)",
}
MARKER = "serverless_pg(**settings): settings of the engine that serverless_pg_engine gives to this test"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the server to the configuration file."""
    for name, text in OPTIONS.items():
        parser.addini(name, text, default="")
    parser.addini("serverless_pg_settings", "lines `name = value`: parameters of the server", type="linelist")


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture(scope="session")
def serverless_pg_server(pytestconfig: pytest.Config) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test run's own, started when the first test asks for it.

    Tests that need it are skipped where PostgreSQL is not installed; where the variable ``CI`` is set they fail.
    """
    with _make_server(pytestconfig) as server:
        yield server


@pytest.fixture(scope="session")
def serverless_pg_conninfo(serverless_pg_server: PostgresServer) -> str:
    """The connection string that `serverless_pg_engine` uses. Override it to test on a server of yours."""
    return serverless_pg_server.dsn


@pytest.fixture
def serverless_pg_engine(request: pytest.FixtureRequest, serverless_pg_conninfo: str) -> Iterator[Engine]:
    """An engine for this test, closed at its end. The marker `serverless_pg` has its settings."""
    from serverless_pg_kit import Engine

    settings: dict[str, Any] = {"conninfo": serverless_pg_conninfo}
    for marker in reversed(list(request.node.iter_markers("serverless_pg"))):  # the closest one comes last
        settings |= marker.kwargs
    engine = Engine(**settings)
    yield engine
    engine.close()


@pytest.fixture
def serverless_pg_request(serverless_pg_engine: Engine) -> Iterator[Connection[Any]]:
    """The connection of a transaction that every request on `serverless_pg_engine` joins, also those of the code under
    test. It is rolled back at the end of the test: see `serverless_pg_kit.testing.rolled_back`."""
    from serverless_pg_kit.testing import rolled_back

    with rolled_back(serverless_pg_engine) as conn:
        yield conn


@pytest.fixture
def serverless_pg_clock(serverless_pg_engine: Engine) -> InstantClock:
    """The clock that `serverless_pg_engine` lives by in this test: its pauses take no time."""
    from serverless_pg_kit.testing import InstantClock

    clock = InstantClock()
    clock.install(serverless_pg_engine)
    return clock


def _make_server(config: pytest.Config) -> PostgresServer:
    from serverless_pg_kit.testing import PostgresServer, ServerError

    version, bin_dir, slots = (config.getini(name) for name in OPTIONS)
    lines = (line.partition("=") for line in config.getini("serverless_pg_settings"))
    try:
        return PostgresServer(
            int(version) if version else None,
            bin_dir=bin_dir or None,
            max_connections=int(slots or 100),
            settings={name.strip(): value.strip() for name, _, value in lines},
        )
    except ServerError as missing:
        reason = f"serverless_pg_server: {missing}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
