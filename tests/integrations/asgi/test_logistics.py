"""The logistics example in FastAPI: on uvicorn, started by the command of its README, and as a Lambda function."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psycopg
import pytest
from asgi_support import serving
from lambda_events import event
from programs import roots
from support import eventually, kill, sessions

import logistics
from logistics.embedded import embedded_server
from serverless_pg_kit.testing import LambdaContainer, PostgresServer

EXAMPLES = Path(logistics.__file__).parents[1]
SIZE = 5
FLEET = "logistics"


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


@pytest.fixture
def module(stocked: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The application as a new process imports it."""
    monkeypatch.setenv("DATABASE_URL", stocked.dsn)
    monkeypatch.setenv("SERVERLESS_PG_MAX_SIZE", str(SIZE))
    monkeypatch.setenv("SERVERLESS_PG_MAX_WAIT", "60")
    monkeypatch.setenv("SERVERLESS_PG_APPLICATION_NAME", FLEET)
    loaded = importlib.reload(importlib.import_module("logistics_fastapi.app"))
    yield loaded
    asyncio.run(loaded.engine.close())


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


def contents(conn: psycopg.Connection[Any]) -> list[Any]:
    """Return all that an order could change."""
    tables = ("fulfilments", "fulfilment_items", "inventory")
    return [conn.execute(f"select * from {name} order by 1, 2".encode()).fetchall() for name in tables]


def test_answers(module: ModuleType) -> None:
    """The application answers as the four functions do."""
    with serving(module.app) as url, httpx.Client(base_url=url) as visitor:
        sales = visitor.get("/sales?limit=2").json()
        assert [item["id"] for item in sales["items"]] == [2000, 1999]
        assert sales["items"][0]["unit_price"] == "2.37"
        assert sales["items"][0]["sold_at"].endswith("+00:00")
        following = visitor.get("/sales", params={"limit": 2, "after": sales["next"]}).json()
        assert [item["id"] for item in following["items"]] == [1998, 1997]
        shelf = visitor.get("/inventory?limit=1").json()["items"][0]
        assert (shelf["warehouse"], shelf["product_id"], shelf["sku"]) == ("BER", 1, "SKU-0001")
        made = visitor.post("/fulfilments", json=order(2, 3))
        assert made.status_code == 201
        assert made.json()["items"] == [{"product_id": 2, "sku": "SKU-0002", "quantity": 3}]
        assert visitor.get(f"/fulfilments/{made.json()['id']}").json() == made.json()


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/fulfilments/0", None, 400, "id must be a whole number from 1 to 9223372036854775807"),
        ("/fulfilments/987654321", None, 404, "there is no fulfilment 987654321"),
        ("/sales?limit=1000", None, 400, "limit must be a whole number from 1 to 200"),
        ("/sales?after=nonsense", None, 400, "after is not a cursor"),
        ("/fulfilments", {"warehouse_id": 1}, 400, "items is missing"),
        ("/fulfilments", order(2, 3, warehouse=9), 422, "there is no warehouse 9"),
        ("/fulfilments", order(2000, 3), 422, "there is no product 2000"),
        ("/fulfilments", order(2, 10_001), 409, "warehouse 1 has too little of: 2"),
    ],
)
def test_refusals(
    module: ModuleType, conn: psycopg.Connection[Any], path: str, body: Any, status: int, error: str
) -> None:
    """What cannot be understood or met is told, and changes nothing."""
    before = contents(conn)
    with serving(module.app) as url:
        answer = httpx.get(url + path) if body is None else httpx.post(url + path, json=body)

    assert (answer.status_code, answer.json()) == (status, {"error": error})
    assert contents(conn) == before


def test_many_orders_at_once(module: ModuleType, conn: psycopg.Connection[Any]) -> None:
    """200 orders at once share five connections; none fails, and each takes what it orders once."""
    before = stock(conn, 3)

    async def visit(url: str) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=100) as visitor:
            answers = (visitor.post("/fulfilments", json=order(3, 1)) for _ in range(200))
            return [answer.status_code for answer in await asyncio.gather(*answers)]

    with serving(module.app) as url:
        statuses = asyncio.run(visit(url))
        assert len(sessions(conn, FLEET)) <= SIZE

    assert Counter(statuses) == {201: 200}
    assert stock(conn, 3) == before - 200
    assert (module.engine.stats.connects <= SIZE, module.engine.stats.in_use) == (True, 0)


def test_command_of_the_readme() -> None:
    """The command starts server, data and application, and SIGTERM ends them all."""
    command = [sys.executable, "-W", "error", "-m", "logistics_fastapi", "0"]
    environment = {**os.environ, "PYTHONPATH": roots(EXAMPLES)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            address = next(line.split()[-5] for line in process.stderr if b"Uvicorn running on" in line)
            assert len(httpx.get(f"{address.decode()}/sales?limit=3").json()["items"]) == 3
        finally:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def api_event(method: str, path: str, body: Any = None) -> dict[str, Any]:
    """An HTTP API's event, with all the fields of a real one."""
    made = event("api_gateway_v2")
    made["requestContext"]["http"].update(method=method, path=path)
    made.update(rawPath=path, rawQueryString="limit=2", queryStringParameters={"limit": "2"})
    text = json.dumps(body).encode()
    made.update(body=base64.b64encode(text).decode(), isBase64Encoded=True)
    made["headers"]["content-length"] = str(len(text))
    return made


def test_lambda_function(stocked: PostgresServer, conn: psycopg.Connection[Any]) -> None:
    """Under Mangum and AWS's runtime client, invocations share one connection, and an order is committed."""
    before = stock(conn, 4)
    variables = {
        "DATABASE_URL": stocked.dsn,
        "SERVERLESS_PG_APPLICATION_NAME": "lambda",
        "PYTHONPATH": roots(EXAMPLES),
    }
    with LambdaContainer(
        "logistics_fastapi.function.handler", folder=EXAMPLES, environment=variables, timeout=30.0
    ) as c:
        pids = set()
        for _ in range(5):
            answer = c.invoke(api_event("GET", "/sales"))
            assert [item["id"] for item in json.loads(answer["body"])["items"]] == [2000, 1999]
            pids |= set(sessions(conn, "lambda"))
        assert len(pids) == 1
        kill(conn, *pids)
        answer = c.invoke(api_event("POST", "/fulfilments", order(4, 5)))
        assert (answer["statusCode"], json.loads(answer["body"])["items"][0]["quantity"]) == (201, 5)
        assert c.invoke(api_event("POST", "/fulfilments", order(4, 10_001)))["statusCode"] == 409
    assert stock(conn, 4) == before - 5
    assert eventually(lambda: sessions(conn, "lambda") == [])
