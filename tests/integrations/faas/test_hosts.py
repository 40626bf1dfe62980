"""Vercel's runtime and Google's functions framework: requests that are served at once share no transaction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import blocks
from faas_hosts import functions_framework, vercel
from support import entries, eventually, sessions

WORK = """
import json, threading
from urllib.parse import parse_qs
from serverless_pg_kit import Engine

together = threading.Barrier(8, timeout=50)  # nobody goes on before all eight hold a connection
engine = Engine(max_size=8)

def work(n):
    with engine.request(deadline=50) as conn:
        conn.execute("insert into ledger values (%s)", [n])
        together.wait()
        if n % 2:
            raise LookupError(n)
        return conn.execute("select pg_backend_pid(), txid_current()").fetchone()
"""

WSGI = (
    WORK
    + """
def app(environ, start_response):
    try:
        row, status = work(int(parse_qs(environ["QUERY_STRING"])["n"][0])), "200 OK"
    except LookupError:
        row, status = None, "500 Internal Server Error"
    start_response(status, [("content-type", "application/json")])
    return [json.dumps(row).encode()]
"""
)

FUNCTION = (
    WORK
    + """
def handler(request):
    return list(work(int(request.args["n"])))
"""
)

ASGI = """
import asyncio, json
from urllib.parse import parse_qs
from serverless_pg_kit import AsyncEngine

engine = AsyncEngine(max_size=8)
together = asyncio.Barrier(8)

async def work(n):
    async with engine.request(deadline=50) as conn:
        await conn.execute("insert into ledger values (%s)", [n])
        await asyncio.wait_for(together.wait(), 50)
        if n % 2:
            raise LookupError(n)
        return await (await conn.execute("select pg_backend_pid(), txid_current()")).fetchone()

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    try:
        row, status = await work(int(parse_qs(scope["query_string"].decode())["n"][0])), 200
    except LookupError:
        row, status = None, 500
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(row).encode()})
"""

HOSTS = [
    pytest.param(vercel, WSGI, id="vercel, threads"),
    pytest.param(vercel, ASGI, id="vercel, tasks"),
    pytest.param(functions_framework, FUNCTION, id="functions framework"),
]


@pytest.mark.parametrize(("host", "code"), HOSTS)
def test_parallel_requests_share_no_transaction(
    tmp_path: Path, variables: Mapping[str, str], superuser: Any, fleet: str, ledger: str, host: Any, code: str
) -> None:
    """Eight requests at once have eight sessions and transactions; those that fail take nothing of the others."""
    module = tmp_path / "service.py"
    module.write_text(code)
    with host(module, variables) as running:
        answers = running.get_all(8)
        served = [answer for answer in answers if isinstance(answer, list)]

        assert [answer for answer in answers if not isinstance(answer, list)] == [500] * 4
        assert len({pid for pid, _ in served}) == len({transaction for _, transaction in served}) == 4
        assert entries(superuser) == [0, 2, 4, 6]
        assert len(sessions(superuser, fleet)) == 8
    assert eventually(lambda: sessions(superuser, fleet) == [])


@pytest.mark.parametrize(("host", "block"), [(functions_framework, 0), (vercel, 1)])
def test_examples_of_the_documentation(
    tmp_path: Path, variables: Mapping[str, str], superuser: Any, fleet: str, host: Any, block: int
) -> None:
    """The examples serve more requests at once than they have connections."""
    code = blocks("lambda.md", "Several requests in one process")[block].replace("max_size=8", "max_size=2")
    module = tmp_path / "service.py"
    module.write_text(code.replace('environ["QUERY_STRING"]', 'environ["QUERY_STRING"].partition("=")[2]'))
    with host(module, variables) as running:
        assert [n for n, _ in running.get_all(8)] == list(range(8))
        assert 1 <= len(sessions(superuser, fleet)) <= 2
