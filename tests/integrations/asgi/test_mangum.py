"""Mangum, which runs the lifespan with each invocation, under AWS's own runtime client."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgi_support import http_scope, run_asgi
from lambda_events import event
from programs import environ, roots
from starlette.types import Receive, Scope, Send
from support import entries, eventually, kill, sessions

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit.testing import LambdaContainer, PostgresServer
from serverless_pg_kit_asgi import ServerlessPgMiddleware

FUNCTION = """
import asyncio
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from mangum import Mangum
from psycopg import AsyncConnection

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit_asgi import ServerlessPgMiddleware, connection, sync_connection

counts = {"starts": 0, "ends": 0}
loops = set()


@asynccontextmanager
async def lifespan(app):
    counts["starts"] += 1
    yield
    counts["ends"] += 1


app = FastAPI(lifespan=lifespan)
engine = AsyncEngine()
app.add_middleware(ServerlessPgMiddleware, engine=engine, close_at_shutdown=True)
app.add_middleware(ServerlessPgMiddleware, engine=Engine(), close_at_shutdown=True)


@app.get("/orders/{entry}")
async def index(entry: int, conn=Depends(connection)):
    loops.add(asyncio.get_running_loop())
    await conn.execute("insert into ledger values (%s)", [entry])
    row = await (await conn.execute("select current_setting('statement_timeout')")).fetchone()
    return {"pid": conn.info.backend_pid, "timeout": row[0], "loops": len(loops), **counts}


@app.get("/sync/{entry}")
def blocking(entry: int, conn=Depends(sync_connection)):
    conn.execute("insert into ledger values (%s)", [entry])
    return {"pid": conn.info.backend_pid}


@app.get("/late/{entry}")
async def late(entry: int, conn=Depends(connection)):
    await conn.execute("insert into ledger values (%s)", [entry])
    await conn.execute("select pg_sleep(600)")


handler = Mangum(app)


def fresh_loop(event, context):
    asyncio.set_event_loop(asyncio.new_event_loop())
    return Mangum(app)(event, context)
"""


@pytest.fixture
def function(tmp_path: Path) -> Path:
    """The folder of a function."""
    (tmp_path / "function.py").write_text(FUNCTION)
    return tmp_path


def visit(container: LambdaContainer, path: str, **limits: float) -> Any:
    """Return status and body of what the function answers to ``GET path``."""
    made = event("api_gateway_v2")
    made["requestContext"]["http"].update(method="GET", path=path)
    answer = container.invoke(made | {"rawPath": path, "body": ""}, **limits)
    return answer["statusCode"], json.loads(answer["body"]) if answer["body"].startswith("{") else answer["body"]


@pytest.mark.parametrize("handler", ["handler", "fresh_loop"])
def test_connections_survive_the_lifespan(
    server: PostgresServer, fleet: str, ledger: str, superuser: psycopg.Connection[Any], function: Path, handler: str
) -> None:
    """Fifty invocations, each with a lifespan of its own, and on a loop of its own if need be, share one backend."""
    variables = {**environ(server, fleet), "PYTHONPATH": roots(function)}
    with LambdaContainer(f"function.{handler}", folder=function, environment=variables, timeout=60.0) as container:
        answers = [visit(container, f"/orders/{entry}") for entry in range(50)]
    bodies = [body for _, body in answers]

    assert {status for status, _ in answers} == {200}
    assert (bodies[-1]["starts"], bodies[-1]["ends"]) == (50, 49)
    assert handler == "handler" or bodies[-1]["loops"] == 50
    assert len({body["pid"] for body in bodies}) == 1
    assert entries(superuser) == list(range(50))
    assert eventually(lambda: sessions(superuser, fleet) == [])


def test_faults_between_invocations(
    server: PostgresServer, fleet: str, ledger: str, superuser: psycopg.Connection[Any], function: Path
) -> None:
    """An invocation after a freeze finds its connection dead and replaces it; so does one of a blocking endpoint."""
    variables = {**environ(server, fleet), "PYTHONPATH": roots(function)}
    with LambdaContainer("function.handler", folder=function, environment=variables, timeout=60.0) as container:
        for number, path in enumerate(["/orders", "/sync"]):
            before = visit(container, f"{path}/{number}")[1]["pid"]
            container.freeze()
            kill(superuser, before)
            container.thaw()
            status, body = visit(container, f"{path}/{number + 10}")
            assert (status, body["pid"] == before) == (200, False)
    assert entries(superuser) == [0, 1, 10, 11]


def test_deadline_of_the_function(
    server: PostgresServer, fleet: str, ledger: str, superuser: psycopg.Connection[Any], function: Path
) -> None:
    """A request ends within the time that its function has left: a statement that takes longer is a 500 in time."""
    variables = {**environ(server, fleet), "PYTHONPATH": roots(function)}
    with LambdaContainer("function.handler", folder=function, environment=variables, timeout=60.0) as container:
        status, body = visit(container, "/orders/1")
        assert status == 200
        assert body["timeout"] != "0"
        assert visit(container, "/late/2", timeout=4.0)[0] == 500
        assert visit(container, "/orders/3")[1]["pid"] > 0
    assert entries(superuser) == [1, 3]


class Context:
    """What the runtime client hands to a function, as far as it matters here."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left."""
        return self.milliseconds


@pytest.mark.parametrize(
    ("options", "context", "least", "most"),
    [
        ({}, None, 0, 0),
        ({}, Context(30_500), 10, 30),
        ({}, Context(0), 0, 0),
        ({"deadline": 200}, Context(30_500), 150, 200),
        ({"deadline": math.inf}, Context(30_500), 0, 0),
    ],
)
def test_whose_deadline(
    engine: AsyncEngine, options: dict[str, Any], context: Context | None, least: float, most: float
) -> None:
    """The deadline of the middleware comes before that of the Lambda context; ``math.inf`` means none."""
    seen: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        conn = await engine.connection
        cursor = await conn.execute("select extract(epoch from current_setting('statement_timeout')::interval)")
        seen.extend(map(float, await cursor.fetchone() or ()))

    asked = http_scope("/") if context is None else http_scope("/", **{"aws.context": context})
    asyncio.run(run_asgi(ServerlessPgMiddleware(app, engine, **options), asked))

    [seconds] = seen
    assert least <= seconds <= most
