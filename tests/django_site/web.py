"""Drives Django's handlers as servers do: with their signals, their threads and their streams."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler


class Answer(NamedTuple):
    """A response, read to its end."""

    status: int
    body: bytes


def get(path: str, **environ: Any) -> Answer:
    """Ask Django for `path` by WSGI, in this thread."""
    return wsgi(WSGIHandler(), path, lambda body: b"".join(body), environ)


def wsgi(
    application: Callable[..., Iterable[bytes]], path: str, read: Callable[[Iterable[bytes]], bytes], environ: Any
) -> Answer:
    """Ask `application` for `path`; `read` takes the body."""
    told: list[str] = []
    path, _, query = path.partition("?")
    given = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "site",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        **environ,
    }
    body = application(given, lambda status, headers, *rest: told.append(status))
    try:
        content = read(body)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()
    return Answer(int(told[0].split()[0]), content)


async def aget(application: ASGIHandler, path: str, hangs_up_after: float | None = None, **scope: Any) -> Answer:
    """Ask Django for `path` by ASGI. A client that `hangs_up_after` so many seconds hears nothing: status 0."""
    sent: list[Mapping[str, Any]] = []
    is_asked = False

    async def receive() -> dict[str, Any]:
        nonlocal is_asked
        if not is_asked:
            is_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await (asyncio.Event().wait() if hangs_up_after is None else asyncio.sleep(hangs_up_after))
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    given = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        **scope,
    }
    await application(given, receive, send)
    return Answer(sent[0]["status"] if sent else 0, b"".join(message.get("body", b"") for message in sent[1:]))


def aget_all(paths: Iterable[str], at_once: int = 20) -> list[Answer]:
    """Ask for all `paths` in an event loop of their own, `at_once` at a time; return the answers in any order."""

    async def ask() -> list[Answer]:
        application, left, answers = ASGIHandler(), list(paths), []

        async def work() -> None:
            while left:
                answers.append(await asyncio.create_task(aget(application, left.pop())))

        await asyncio.gather(*(work() for _ in range(at_once)))
        return answers

    return asyncio.run(ask())
