"""The example's site over HTTP, and in Lambda functions under AWS's own runtime client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from django_hosts import EXAMPLES, any_port, fetch, filled, http_event, order, server_command, serving, site_environ
from psycopg.conninfo import make_conninfo
from support import kill, sessions

from serverless_pg_kit.testing import LambdaContainer, PostgresServer

Superuser = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def conninfo(server: PostgresServer) -> str:
    """The example's database."""
    return filled(server, "logistics")


@pytest.fixture(params=["by_wsgi", "by_asgi"])
def container(request: pytest.FixtureRequest, conninfo: str, fleet: str) -> Iterator[LambdaContainer]:
    """The site as a Lambda function, by apig-wsgi and by Mangum."""
    with LambdaContainer(
        f"logistics_django.hosts.{request.param}",
        folder=EXAMPLES,
        environment=site_environ(conninfo, fleet),
        timeout=30.0,
        init_timeout=60.0,
    ) as running:
        yield running


def answer(response: dict[str, Any]) -> tuple[int, Any]:
    """Return status and decoded body of a proxy response."""
    return response["statusCode"], json.loads(response["body"])


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_http(conninfo: str, superuser: Superuser, fleet: str, kind: str) -> None:
    """Web servers with many threads serve all, over few connections; a killed one is replaced unseen."""
    port = any_port()
    environ = site_environ(conninfo, fleet, SERVERLESS_PG_MAX_SIZE="3", SERVERLESS_PG_MAX_WAIT="60")
    with serving(server_command(kind, port), environ, port) as site:
        status, made = fetch(f"{site}/fulfilments", order(1, (2, 3), (5, 1)))
        assert status == 201
        assert fetch(f"{site}/fulfilments/{made['id']}") == (200, made)
        assert fetch(f"{site}/fulfilments", order(77, (2, 3)))[0] == 422
        assert fetch(f"{site}/fulfilments", order(1, (2, 999_999)))[0] == 409
        kill(superuser, *sessions(superuser, fleet))
        paths = ["sales?limit=5", "inventory?limit=5", "warehouses", f"fulfilments/{made['id']}"] * 25
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda path: fetch(f"{site}/{path}")[0], paths))

        assert answers == [200] * 100
        assert 1 <= len(sessions(superuser, fleet)) <= 3


def test_lambda(container: LambdaContainer, superuser: Superuser, fleet: str) -> None:
    """A function serves the site over one connection, which is replaced when it was killed between two invocations."""
    status, made = answer(container.invoke(http_event("POST", "/fulfilments", order(2, (3, 4)))))
    assert status == 201
    assert answer(container.invoke(http_event("GET", f"/fulfilments/{made['id']}"))) == (200, made)
    assert answer(container.invoke(http_event("GET", "/sales", query="limit=1")))[0] == 200
    assert len(sessions(superuser, f"{fleet}")) == 1

    kill(superuser, *sessions(superuser, fleet))
    assert answer(container.invoke(http_event("GET", "/warehouses")))[0] == 200


def test_lambda_deadline(container: LambdaContainer, superuser: Superuser) -> None:
    """A view that waits for a lock answers before the function's time is over; the next invocation is served."""
    with psycopg.connect(
        make_conninfo(superuser.info.dsn, dbname="logistics", password=superuser.info.password)
    ) as conn:
        container.invoke(http_event("GET", "/warehouses"))
        conn.execute("lock table fulfilments")
        response = container.invoke(http_event("GET", "/fulfilments/1"), timeout=1.5)
    assert response["statusCode"] == 500
    assert answer(container.invoke(http_event("GET", "/fulfilments/1")))[0] == 200
    assert container.starts == 1


def test_lambda_queue(conninfo: str, fleet: str) -> None:
    """A batch of orders: each is a transaction of its own, and only those that fail come again."""
    records = [
        {"messageId": str(number), "body": json.dumps(order(3, (product, 1)))}
        for number, product in enumerate((1, 99, 2))
    ]
    with (
        psycopg.connect(conninfo, autocommit=True) as conn,
        LambdaContainer(
            "logistics_django.hosts.import_orders",
            folder=EXAMPLES,
            environment=site_environ(conninfo, fleet),
            timeout=30.0,
            init_timeout=60.0,
        ) as function,
    ):
        before = conn.execute("select count(*) from fulfilments").fetchone()
        assert function.invoke({"Records": records}) == {"batchItemFailures": [{"itemIdentifier": "1"}]}
        after = conn.execute("select count(*) from fulfilments").fetchone()

    assert before is not None
    assert after == (before[0] + 2,)
