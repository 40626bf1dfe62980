"""The logistics example in Flask: on gunicorn's threads, and as a Lambda function."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask_support import EXAMPLES, free_port, is_up, serving
from lambda_events import event
from programs import roots
from support import eventually

from logistics.embedded import embedded_server
from serverless_pg_kit.testing import LambdaContainer, PostgresServer

APPLICATION = "logistics_flask.app:create_app()"

Answer = tuple[int, Any]


@pytest.fixture(scope="module")
def stocked() -> Iterator[PostgresServer]:
    """A server with the example's tables and data."""
    with embedded_server() as server:
        yield server


@pytest.fixture
def conn(stocked: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection that looks on."""
    with psycopg.connect(stocked.superuser_dsn, dbname="app", autocommit=True) as connection:
        yield connection


def ask(url: str, path: str, body: Any = None) -> Answer:
    """Return status and JSON of the answer; ``None`` for what is no JSON."""
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
            return error.code, json.loads(text) if text.startswith(b"{") else None


def order(product: int, quantity: int, warehouse: int = 1) -> dict[str, Any]:
    """The body of an order."""
    return {"warehouse_id": warehouse, "items": [{"product_id": product, "quantity": quantity}]}


def stock(conn: psycopg.Connection[Any], product: int, warehouse: int = 1) -> int:
    """Return the pieces on one shelf."""
    found = conn.execute(
        "select quantity from inventory where (warehouse_id, product_id) = (%s, %s)", [warehouse, product]
    )
    [pieces] = found.fetchone() or [0]
    return int(pieces)


def test_answers(stocked: PostgresServer, conn: psycopg.Connection[Any]) -> None:
    """The application answers as the four functions do, and a refused order changes nothing."""
    with serving(APPLICATION, {"DATABASE_URL": stocked.dsn}) as url:
        status, sales = ask(url, "/sales?limit=2")
        assert (status, [item["id"] for item in sales["items"]]) == (200, [2000, 1999])
        assert sales["items"][0]["unit_price"] == "2.37"
        assert ask(url, f"/sales?limit=2&after={sales['next']}")[1]["items"][0]["id"] == 1998
        assert ask(url, "/inventory?limit=1")[1]["items"][0]["warehouse"] == "BER"

        before = stock(conn, 2)
        status, made = ask(url, "/fulfilments", order(2, 3))
        assert (status, stock(conn, 2)) == (201, before - 3)
        assert ask(url, f"/fulfilments/{made['id']}") == (200, made)
        assert ask(url, "/fulfilments", order(2, 10**6)) == (409, {"error": "warehouse 1 has too little of: 2"})
        assert ask(url, "/fulfilments", order(999, 1))[0] == 422
        assert ask(url, "/fulfilments", {"items": []})[0] == 400
        assert ask(url, "/fulfilments/0")[0] == 400
        assert ask(url, f"/fulfilments/{2**40}")[0] == 404
        assert stock(conn, 2) == before - 3


def test_many_threads(stocked: PostgresServer, conn: psycopg.Connection[Any]) -> None:
    """200 requests over 20 threads with five connections: all are served, by at most five backends, one at a time."""
    fleet = "logistics_flask_threads"
    variables = {
        "DATABASE_URL": stocked.dsn,
        "SERVERLESS_PG_APPLICATION_NAME": fleet,
        "SERVERLESS_PG_MAX_SIZE": "5",
        "SERVERLESS_PG_MAX_WAIT": "60",
    }
    backends = "select count(*) from pg_stat_activity where split_part(application_name, ':', 1) = %s"
    before, most = stock(conn, 3), 0
    with serving(APPLICATION, variables) as url, ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask, url, "/fulfilments", order(3, 2)) for _ in range(200)]
        while not all(answer.done() for answer in answers):
            [now] = conn.execute(backends, [fleet]).fetchone() or [0]
            most = max(most, now)
        assert Counter(answer.result()[0] for answer in answers) == {201: 200}
        fulfilments = {answer.result()[1]["id"] for answer in answers}
        assert {len(answer.result()[1]["items"]) for answer in answers} == {1}
    assert 1 <= most <= 5
    assert len(fulfilments) == 200
    assert stock(conn, 3) == before - 400


def test_command_of_the_readme() -> None:
    """One command starts a server with data and the application in front of it, and Ctrl+C ends both."""
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "logistics_flask", address]
    environ = {**os.environ, "PYTHONPATH": roots(EXAMPLES)}
    with subprocess.Popen(
        command, env=environ, cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert eventually(lambda: is_up(f"http://{address}"), 60)
            assert ask(f"http://{address}", "/sales?limit=1")[0] == 200
        finally:
            process.terminate()
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert process.stdout.read().decode() == f"Try http://{address}/sales?limit=2\n"


def api_event(version: int, method: str, path: str, body: Any = None, query: str = "") -> dict[str, Any]:
    """Return the event of an HTTP API (2) or a REST API (1) for a request."""
    made = event(f"api_gateway_v{version}")
    if version == 2:
        made["requestContext"]["http"] |= {"method": method, "path": path}
        made |= {"rawPath": path, "rawQueryString": query, "cookies": []}
        made["requestContext"]["stage"] = "$default"
    else:
        made |= {"httpMethod": method, "path": path, "multiValueQueryStringParameters": None}
        made["queryStringParameters"] = dict(part.split("=") for part in query.split("&") if part) or None
        made["multiValueQueryStringParameters"] = {
            k: [v] for k, v in (made["queryStringParameters"] or {}).items()
        } or None
    text = "" if body is None else json.dumps(body)
    return made | {"body": text, "isBase64Encoded": False}


def decoded(response: dict[str, Any]) -> Answer:
    """Return status and JSON of a proxy response."""
    body = response["body"]
    return response["statusCode"], json.loads(base64.b64decode(body) if response.get("isBase64Encoded") else body)


@pytest.mark.parametrize("version", [1, 2])
def test_lambda_function(stocked: PostgresServer, conn: psycopg.Connection[Any], version: int) -> None:
    """Under AWS's own runtime client one connection serves all invocations, frozen in between."""
    fleet = f"logistics_flask_lambda_{version}"
    environment = {
        "DATABASE_URL": stocked.dsn,
        "SERVERLESS_PG_APPLICATION_NAME": fleet,
        "PYTHONPATH": roots(EXAMPLES),
    }
    backends = "select count(*) from pg_stat_activity where split_part(application_name, ':', 1) = %s"
    with LambdaContainer(
        "logistics_flask.function.handler", folder=EXAMPLES, environment=environment, timeout=30.0, frozen=True
    ) as container:
        before = stock(conn, 4)
        status, made = decoded(container.invoke(api_event(version, "POST", "/fulfilments", order(4, 2))))
        assert (status, stock(conn, 4)) == (201, before - 2)
        assert decoded(container.invoke(api_event(version, "GET", f"/fulfilments/{made['id']}"))) == (200, made)
        assert len(decoded(container.invoke(api_event(version, "GET", "/sales", query="limit=3")))[1]["items"]) == 3
        assert decoded(container.invoke(api_event(version, "POST", "/fulfilments", order(4, 10**6))))[0] == 409
        assert conn.execute(backends, [fleet]).fetchone() == (1,)
        assert container.starts == 1
