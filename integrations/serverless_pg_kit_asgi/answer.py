"""The answer on its way out, and the end of its request before it is complete."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from http import HTTPStatus
from typing import Any

from starlette.types import Message, Send

from serverless_pg_kit.scope_base import WorkBase

BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
BODY = ("http.response.body", "http.response.zerocopysend", "http.response.pathsend")
"""Messages that carry the body, or a part of it."""


class Answer:
    """Passes the messages of an answer on to `send`, and calls `end` before the one that completes its body.

    `work` hears the status first. The head of an answer that announces its length waits for the body: when `end`
    raises, nothing has gone out yet if the body comes in one piece. Otherwise the answer stays incomplete, and the
    client sees that. A head without a length goes out at once: a client may wait for it long before the first part.
    """

    def __init__(
        self, work: WorkBase, end: Callable[[], Awaitable[Any]], send: Send, rollback_on: Container[int]
    ) -> None:
        self._work = work
        self._end = end
        self._send = send
        self._rollback_on = rollback_on
        self._held: Message | None = None
        self._left: int | None = None
        self._is_complete = False
        self._problem: Exception | None = None

    async def send(self, message: Message) -> None:
        """Take the next message from the application. Raises what the end of the request raises."""
        if message["type"] == "http.response.start":
            status = message["status"]
            self._work.respond(status, rollback=status in self._rollback_on)
            self._left = announced_length(message)
            if self._left is not None:
                self._held = message
                return
        elif message["type"] in BODY:
            await self._pass_body(message)
        await self._send(message)

    def settle(self) -> None:
        """Look at what the application has left, when it is done: without a whole body the request is to roll back.

        Raises what the end of the request has raised, unless another answer went out for it: the application may have
        swallowed it, or taken it for something else.
        """
        if self._is_complete:
            return
        self._work.fail()
        if self._problem is not None:
            raise self._problem from self._problem.__cause__

    async def _pass_body(self, message: Message) -> None:
        if self._completes(message) and not self._is_complete:
            await self._finish()
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)

    def _completes(self, message: Message) -> bool:
        """Tell whether nothing of the body is left after this part of it.

        Middleware that copies bodies marks each part as one of several, and sends an empty one at last.
        """
        if self._left is not None:
            self._left -= len(message.get("body", b""))
        return not message.get("more_body", False) or (self._left is not None and self._left <= 0)

    async def _finish(self) -> None:
        try:
            await self._end()
        except Exception as problem:
            self._problem = problem
            raise
        self._is_complete = True


def announced_length(start: Message) -> int | None:
    """Return the length of the body by the headers of `start`, ``None`` if they do not tell."""
    if start["status"] in BODILESS:
        return 0
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None
