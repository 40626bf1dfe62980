"""What the lifespan of an application is told, and what it ends."""

from __future__ import annotations

import os
from typing import NoReturn

from starlette.types import Message, Receive, Scope, Send

from serverless_pg_kit import AsyncEngine, Engine


async def refuse(scope: Scope, receive: Receive, send: Send, problem: Exception) -> NoReturn:
    """Raise `problem`. A server that asks whether the application has started hears that it has not."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": str(problem)})
    raise problem


def closing(engine: AsyncEngine | Engine, send: Send) -> Send:
    """Return a `send` that closes `engine` when the application has shut down.

    Not in AWS Lambda: adapters there begin and end the lifespan with each invocation, but connections are to survive.
    """

    async def close_and_send(message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown.") and "AWS_LAMBDA_FUNCTION_NAME" not in os.environ:
            if isinstance(engine, Engine):
                engine.close()
            else:
                await engine.close()
        await send(message)

    return close_and_send
