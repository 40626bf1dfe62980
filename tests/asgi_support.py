"""What the tests of ASGI applications need: a real server, and requests by hand where a client is too polite."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from support import eventually

Message = MutableMapping[str, Any]


@contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """Serve `app` by uvicorn in a thread; give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=10, **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert eventually(lambda: server.started or not thread.is_alive())
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def client(app: Any, **options: Any) -> httpx.AsyncClient:
    """Return a client of `app` without a server. What the application raises becomes a 500, as servers make of it."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, **options)
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)


def get(app: Any, path: str) -> httpx.Response:
    """Return the answer of `app` to one request."""

    async def visit() -> httpx.Response:
        async with client(app) as visitor:
            return await visitor.get(path)

    return asyncio.run(visit())


def http_scope(path: str, **more: Any) -> dict[str, Any]:
    """Return what a server hands to an application for ``GET path``; `more` goes on top."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    } | more


async def run_asgi(
    app: Any, scope: MutableMapping[str, Any], heard: Callable[[Message], Awaitable[None] | None] | None = None
) -> list[Message]:
    """Run `app` for `scope` as a server does; return what it sent. `heard` is called with each message first."""
    sent: list[Message] = []
    asked = False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if heard is not None and (result := heard(message)) is not None:
            await result
        sent.append(message)

    await app(scope, receive, send)
    return sent
