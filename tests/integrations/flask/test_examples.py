"""The examples of docs/flask.md do what the page says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doc_blocks import blocks
from lambda_events import event

from serverless_pg_kit.testing import PostgresServer

Run = Callable[[str], dict[str, Any]]


@pytest.fixture
def run(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the code of an example, with the server in its environment; returns its names."""
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    engines: list[Any] = []

    def run_code(code: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "example"}
        exec(code, names)
        if "app" not in names:
            names["app"] = names["create_app"]()
        engines.append(names["app"].extensions["serverless_pg"].engine)
        return names

    yield run_code
    for engine in engines:
        engine.close()


def test_commit_in_the_view(run: Run, superuser: Any) -> None:
    """A room that is booked twice, which COMMIT finds out, is a 409."""
    superuser.execute("create table bookings (room int unique deferrable initially deferred)")
    superuser.execute("grant all on bookings to app")
    client = run(blocks("flask.md", "When it commits")[0])["app"].test_client()

    assert [client.put(f"/rooms/{room}").status_code for room in (1, 1, 2)] == [200, 409, 200]
    superuser.execute("drop table bookings")


def test_streamed_rows(run: Run, superuser: Any) -> None:
    """A body reads from a server-side cursor, on a connection that its request was the first to touch."""
    superuser.execute("create table sales as select id, 'sku ' || id as sku from generate_series(1, 500) as id")
    superuser.execute("grant all on sales to app")
    client = run(blocks("flask.md", "Streaming")[0])["app"].test_client()

    lines = client.get("/sales.csv").text.splitlines()
    assert (len(lines), lines[0]) == (500, "1,sku 1")
    superuser.execute("drop table sales")


def test_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that is made by a factory uses the engine that was passed."""
    monkeypatch.setattr("serverless_pg_kit.close_on_sigterm", lambda engine: None)
    names = run(blocks("flask.md", "Configuration")[0])

    assert names["app"].extensions["serverless_pg"].engine is names["engine"]


def test_lambda_handler(run: Run) -> None:
    """The application answers events of API Gateway."""
    names = run(blocks("flask.md", "On AWS Lambda")[0])

    assert names["handler"](event("api_gateway_v2"), None)["statusCode"] == 404
