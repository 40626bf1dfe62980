"""Lambda's Runtime API and Extensions API, as far as the real runtime client and extensions within it use them."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from serverless_pg_kit.testing.awslambda.errors import HandlerFailed, RuntimeExited
from serverless_pg_kit.testing.awslambda.invocation import Invocation

HOST = "127.0.0.1"

Report = Mapping[str, Any]


class RuntimeApi:
    """The API of one environment, on a port of its own. Close it.

    `calls` are the paths that were asked for, in order, `extensions` what registered. With `refuses_extensions` none
    is let in. `is_closed` is set when its process has ended, too. `init_error` is what the runtime client reported
    before it could take an event. An environment that `has_workers` may lose one of its processes and go on.
    """

    def __init__(self, arn: str, *, has_workers: bool = False, refuses_extensions: bool = False) -> None:
        self.arn: str = arn
        self.has_workers: bool = has_workers
        self.refuses_extensions: bool = refuses_extensions
        self.calls: list[str] = []
        self.extensions: list[dict[str, Any]] = []
        self.init_error: Report | None = None
        self.is_at_snapshot: bool = False
        self._restores = False
        self.is_closed: bool = False
        self._idle = 0
        self._events: deque[Invocation] = deque()
        self._under_way: dict[str, Invocation] = {}
        self._changed = threading.Condition()
        self._server = Server((HOST, 0), self)
        self._listener = threading.Thread(target=self._listen, name="Runtime API", daemon=True)
        self._listener.start()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self._server.server_port}"

    def close(self) -> None:
        """Stop listening, and let everybody go who waits. It may be called again."""
        self.interrupt()
        if self._listener.is_alive():
            with suppress(OSError):
                socket.create_connection((HOST, self._server.server_port), timeout=1.0).close()  # wakes the listener
            self._listener.join(5.0)
        self._server.server_close()

    def _listen(self) -> None:
        while not self.is_closed:
            self._server.handle_request()

    def give(self, invocation: Invocation) -> None:
        """Let the function handle `invocation` as soon as it asks for one."""
        with self._changed:
            self._events.append(invocation)
            self._changed.notify_all()

    def withdraw(self, invocation: Invocation) -> None:
        """Do not give `invocation` to the function any more, if it has not taken it."""
        with self._changed, suppress(ValueError):
            self._events.remove(invocation)

    def restore(self) -> None:
        """Let the function go on that waits for being restored from its snapshot."""
        with self._changed:
            self._restores = True
            self._changed.notify_all()

    def wait_for_call(self, *, idle: int, timeout: float) -> bool:
        """Tell whether, within `timeout` seconds, that many workers ask for events, or the start fails; with 0 it is
        whether the function asks to be restored."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_come_to(idle) or self.is_closed, timeout)
            return self._has_come_to(idle)

    def interrupt(self) -> None:
        """Let nobody wait any longer for what the function may ask: its process has ended."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _has_come_to(self, idle: int) -> bool:
        return self._idle >= idle if idle else self.is_at_snapshot

    def next(self, connection: socket.socket) -> Invocation | None:
        """Wait for an event for the client behind `connection`; ``None`` if that is gone, or all is over."""
        with self._changed:
            self._idle += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._events or self.is_closed)
                if self.is_closed or has_hung_up(connection):
                    return None
                invocation = self._events.popleft()
                self._under_way[invocation.id] = invocation
                return invocation
            finally:
                self._idle -= 1
                self._changed.notify_all()

    def snapshot(self) -> None:
        """Wait until the snapshot is restored."""
        with self._changed:
            self.is_at_snapshot = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._restores or self.is_closed)

    def wait_for_the_end(self) -> None:
        """Wait until there is no environment any more."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_closed)

    def answered(self, identifier: str) -> Invocation | None:
        """Return the invocation that is answered now; ``None`` if nobody waits for that answer any more."""
        with self._changed:
            return self._under_way.pop(identifier, None)

    def failed_to_start(self, report: Report) -> None:
        """Take the report of an initialisation that failed; the first one, if several workers send one."""
        with self._changed:
            self.init_error = self.init_error or report

    def lost(self, invocation: Invocation) -> None:
        """Note that the client that had taken `invocation` has hung up: it has ended. Of one that is alone, whoever
        waits for its process knows more."""
        if self.has_workers and self.answered(invocation.id):
            invocation.fail(RuntimeExited(None))


class Server(ThreadingHTTPServer):
    """Serves `api`, one thread for each connection."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], api: RuntimeApi) -> None:
        super().__init__(address, Calls)
        self.api: RuntimeApi = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing about clients that were killed."""


class Calls(BaseHTTPRequestHandler):
    """What the runtime client and extensions may ask."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: apart, Nagle's algorithm would add 40 ms to every invocation
    disable_nagle_algorithm: ClassVar[bool] = True

    @property
    def api(self) -> RuntimeApi:
        """What is asked."""
        assert isinstance(self.server, Server)
        return self.server.api

    def setup(self) -> None:
        """Begin a connection."""
        super().setup()
        self.taken: Invocation | None = None

    def finish(self) -> None:
        """End a connection."""
        if self.taken is not None:
            self.api.lost(self.taken)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about requests."""

    def do_GET(self) -> None:
        """Answer the calls that wait for something."""
        self.api.calls.append(self.path)
        if self.path.endswith("/invocation/next"):
            self._next()
        elif self.path.endswith("/restore/next"):
            self.api.snapshot()
            self._give(200)
        elif self.path.endswith("/extension/event/next"):
            self.api.wait_for_the_end()
            self._hang_up()
        else:
            self._give(404)

    def do_POST(self) -> None:
        """Take what the function or an extension has to say."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.api.calls.append(self.path)
        *_, identifier, verb = self.path.split("/")
        if verb == "register":
            self._register(body)
        elif verb == "error" and identifier in ("init", "restore"):
            self.api.failed_to_start(json.loads(body))
            self._give(202)
        elif verb in ("response", "error"):
            self._answer(identifier, verb, body)
        else:
            self._give(404)

    def _next(self) -> None:
        invocation = self.api.next(self.connection)
        if invocation is None:
            self._hang_up()
            return
        self.taken = invocation
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.id,
            "Lambda-Runtime-Deadline-Ms": str(int(invocation.begin() * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self.api.arn,
            "Lambda-Runtime-Trace-Id": "Root=1-00000000-000000000000000000000000;Sampled=0",
            "Content-Type": "application/json",  # the client crashes without it
        }
        self._give(200, invocation.body, headers)

    def _answer(self, identifier: str, verb: str, body: bytes) -> None:
        self.taken = None
        invocation = self.api.answered(identifier)
        if invocation is not None and verb == "error":
            invocation.fail(HandlerFailed("the handler raised", json.loads(body)))
        elif invocation is not None:
            invocation.succeed(decoded(body))
        self._give(202)

    def _register(self, body: bytes) -> None:
        if self.api.refuses_extensions:
            self._give(403, b'{"errorType": "Extension.AlreadyRegistered"}')
            return
        self.api.extensions.append({"name": self.headers["Lambda-Extension-Name"], **json.loads(body)})
        self._give(200, b"{}", {"Lambda-Extension-Identifier": "an-identifier"})

    def _hang_up(self) -> None:
        setattr(self, "close_connection", True)  # noqa: B010 - typed nowhere: an assignment would be a declaration

    def _give(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def decoded(body: bytes) -> Any:
    """Return what a handler returned; a body that is no JSON stays as it is."""
    try:
        return json.loads(body)
    except ValueError:
        return body


def has_hung_up(connection: socket.socket) -> bool:
    """Tell whether the other side of `connection`, which waits for an answer, is gone."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
