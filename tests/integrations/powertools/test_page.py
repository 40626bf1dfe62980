"""The examples on the page do what the page says."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools import event_handler
from powertools_support import event_of
from support import eventually, sessions

from serverless_pg_kit import Engine
from serverless_pg_kit.testing import PostgresServer

if not hasattr(event_handler, "Depends"):
    pytest.skip("the page shows Depends, which came with Powertools 3.28", allow_module_level=True)

PAGE = Path(__file__).parents[3] / "docs" / "powertools.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(server: PostgresServer, superuser: Any, fleet: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs the blocks up to the first that has a text; one after the other, as a reader would."""
    superuser.execute("create table orders (id int primary key, status text); insert into orders values (7, 'packed')")
    superuser.execute("create table visits (path text); grant all on orders, visits to app")
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    monkeypatch.setenv("SERVERLESS_PG_APPLICATION_NAME", fleet)
    names: dict[str, Any] = {}
    engines: list[Any] = []

    def run(text: str) -> dict[str, Any]:
        for block in BLOCKS:
            exec(compile(block, PAGE.name, "exec"), names)
            engines.append(names["engine"])
            if text in block:
                return names
        raise AssertionError(f"{text!r} is not on the page")

    yield run
    for engine in engines:
        closing = engine.close()
        if closing is not None:
            asyncio.run(closing)
    assert eventually(lambda: sessions(superuser, fleet) == [])
    superuser.execute("drop table orders, visits")


def test_function(page: Any, superuser: psycopg.Connection[Any], context: Any) -> None:
    """The decorated function writes."""
    assert page("@postgres_middleware(engine=engine)")["handler"]({"path": "/"}, context) == {"statusCode": 201}
    assert superuser.execute("select path from visits").fetchall() == [("/",)]


@pytest.mark.parametrize(
    ("text", "kind"), [("PostgresMiddleware(engine)])", "api_gateway_v1"), ("resolve_async", "api_gateway_v2")]
)
def test_routes(page: Any, context: Any, text: str, kind: str) -> None:
    """The routes read, with and without async."""
    answer = page(text)["handler"](event_of(kind), context)
    assert (answer["statusCode"], "packed" in answer["body"]) == (200, True)


def test_dependency(page: Any, context: Any) -> None:
    """The route with Depends reads."""
    answer = page("Depends(connection)]")["app"].resolve(event_of("api_gateway_v1", path="/orders"), context)
    assert json.loads(answer["body"]) == [[7, "packed"]]


def test_listeners(page: Any) -> None:
    """The blocks about metrics, logs and traces, and the last one, run."""
    assert isinstance(page("trace_engine(engine, tracer)")["engine"], Engine)
    page("def answer_later")
