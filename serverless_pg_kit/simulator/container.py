"""The inside of a container: one handler module, one request at a time, as a Lambda runtime runs it."""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from typing import Any

from serverless_pg_kit.simulator import wire


class Context:
    """What a handler is told about its invocation. `deadline` is the end of it in seconds of `time.time()`."""

    def __init__(self, deadline: float) -> None:
        self.function_name: str = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left of the function's time limit, in milliseconds."""
        return max(0, int((self._deadline - time.time()) * 1000))


def serve(channel: socket.socket, module: str) -> None:
    """Answer requests for the handlers of `module` until the platform closes `channel`."""
    wire.send(channel, {"pid": os.getpid()})
    while (request := wire.receive(channel)) is not None:
        wire.send(channel, _answer(module, request))


def _answer(module: str, request: dict[str, Any]) -> dict[str, Any]:
    try:
        # In here, so that an error while the module loads fails the request, and the next one tries again.
        handler = getattr(importlib.import_module(module), request["handler"])
        response = handler(request["event"], Context(request["deadline"]))
        return {"status": response["statusCode"], "response": json.dumps(response)}
    except Exception as error:
        return {"status": 500, "error": f"{type(error).__name__}: {error}"}
