"""A Lambda Runtime API and Extensions API for the real runtime client, ``awslambdaric``: what it needs, and no more.

::

    with RuntimeApi() as api, api.start("module.handler", environ) as runtime:
        print(api.invoke({"id": 1}))
        runtime.send_signal(signal.SIGTERM)
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE = 30.0
"""Seconds to wait for the runtime, before something is wrong."""

Answer = dict[str, Any]


class RuntimeApi:
    """Listens on a port of its own between its ``with`` and the end of the block.

    `calls` are the paths that were asked for, in order; `extensions` what registered. With `refuses_extensions` none
    is let in. A function that starts from a snapshot asks for its restore: `frozen` is set then, and `restore` to be
    set by the test.
    """

    def __init__(self, *, refuses_extensions: bool = False) -> None:
        self.refuses_extensions = refuses_extensions
        self.calls: list[str] = []
        self.extensions: list[dict[str, Any]] = []
        self.frozen = threading.Event()
        self.restore = threading.Event()
        self.events: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._server = Server(("127.0.0.1", 0), self)

    def __enter__(self) -> RuntimeApi:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    @contextmanager
    def start(
        self, handler: str, environ: Mapping[str, str], *, polls: bool = False
    ) -> Iterator[subprocess.Popen[str]]:
        """Start the runtime client with `handler`; it is killed at the end of the block.

        With `polls` it waits for invocations in a thread, as on Python 3.12 and later; otherwise in the main thread.
        """
        environ = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": self.address,
            "AWS_LAMBDA_FUNCTION_NAME": "function",
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{'3.13' if polls else '3.11'}",
            **environ,
        }
        command = [sys.executable, "-m", "awslambdaric", handler]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    def invoke(self, event: object) -> Answer:
        """Let the function handle `event`; return its answer. Raises ``queue.Empty`` if none comes."""
        self.send(event)
        return self.answers.get(timeout=PATIENCE)

    def send(self, event: object) -> None:
        """Let the function handle `event`, and do not wait for it."""
        self.events.put(json.dumps(event).encode())

    def wait_until_idle(self) -> None:
        """Wait until the function asks for its next event. Raises ``TimeoutError``."""
        if not self._idle.acquire(timeout=PATIENCE):
            raise TimeoutError("the runtime did not ask for an event")


class Server(ThreadingHTTPServer):
    """Serves `api`, one thread for each connection."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], api: RuntimeApi) -> None:
        super().__init__(address, Calls)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that were killed."""


class Calls(BaseHTTPRequestHandler):
    """What the client and the extension may ask."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: apart, Nagle's algorithm would add 40 ms to every invocation

    @property
    def api(self) -> RuntimeApi:
        """What is asked."""
        assert isinstance(self.server, Server)
        return self.server.api

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""

    def do_GET(self) -> None:
        """Answer the calls that wait for something."""
        api = self.api
        api.calls.append(self.path)
        if self.path.endswith("/invocation/next"):
            api._idle.release()
            self._give(200, api.events.get() or b"", self._invocation())
        elif self.path.endswith("/restore/next"):
            api.frozen.set()
            api.restore.wait(PATIENCE)
            self._give(200)
        elif self.path.endswith("/extension/event/next"):
            threading.Event().wait(PATIENCE)

    def do_POST(self) -> None:
        """Take what the function or the extension has to say."""
        api, body = self.api, self.rfile.read(int(self.headers["Content-Length"]))
        api.calls.append(self.path)
        if not self.path.endswith("/extension/register"):
            api.answers.put({"path": self.path, "body": json.loads(body)})
            self._give(202)
        elif api.refuses_extensions:
            self._give(403, b'{"errorType": "Extension.AlreadyRegistered"}')
        else:
            api.extensions.append({"name": self.headers["Lambda-Extension-Name"], **json.loads(body)})
            self._give(200, b"{}" + b" " * 300, {"Lambda-Extension-Identifier": "an-identifier"})

    def _invocation(self) -> dict[str, str]:
        return {
            "Lambda-Runtime-Aws-Request-Id": "a-request",
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + 60) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:123456789012:function:function",
            "Content-Type": "application/json",  # the client crashes without it
        }

    def _give(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
