"""A proxy between client and server: it counts what passes, falls silent, and cuts the line at any byte.

For connections without TLS to a server on TCP. A thread for each connection, so that a client that does not read holds
up nobody else.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from psycopg.conninfo import make_conninfo

Side = Literal["client", "server"]

CHUNK = 1 << 16
NEGOTIATION = 1234
"""Upper half of the code of a first message that asks for encryption or for a cancel instead of starting a session."""

CANCEL = 5678
"""Lower half of the code of a cancel."""


@dataclass
class Traffic:
    """What passed on connections that were ready, those that a client has logged in on.

    `exchanges` counts how often a server said that it is ready for the next command, `flights` how often a client
    sent something and was answered, whatever the number of messages; `sent` are the types of the client's messages,
    `queries` the texts of the simple ones.
    """

    exchanges: int = 0
    flights: int = 0
    sent: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)


@dataclass
class Cut:
    """An order to cut the line `after` so many bytes towards `toward`, from the start of the message with `when` on.

    `asked` and `answered` are what was let through since: the client's bytes and the server's. `done` tells whether
    it came to the cut.
    """

    after: int
    toward: Side
    when: bytes
    asked: bytes = b""
    answered: bytes = b""
    done: bool = False

    def let_through(self, data: bytes, toward: Side) -> bytes:
        """Return as much of `data` as may still pass, and take note of it."""
        passed = self.asked if toward == "server" else self.answered
        allowed = data[: self.after - len(passed)] if toward == self.toward else data
        if toward == "server":
            self.asked += allowed
        else:
            self.answered += allowed
        if toward == self.toward:  # so 0 bytes of the answer let the question through, and cut when an answer comes
            self.done = len(passed) + len(data) >= self.after
        return allowed


class Proxy:
    """Listens on a port of its own, between its ``with`` and the end of the block, and forwards to `host` and `port`.

    ::

        with Proxy(server.host, server.port) as proxy:
            psycopg.connect(proxy.reroute(server.dsn))
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.lock = threading.Lock()
        self.traffic = Traffic()
        self.order: Cut | None = None
        self._ear = socket.create_server(("127.0.0.1", 0))
        self._port = int(self._ear.getsockname()[1])
        self._lines: list[Line] = []
        self._held: list[socket.socket] = []
        self._takes_newcomers = True
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Proxy:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._ear.shutdown(socket.SHUT_RDWR)  # wakes the acceptor; close() alone would not
        self._acceptor.join()
        self._ear.close()
        for line in self._lines:
            line.hang_up()
            line.join()
        for held in self._held:
            held.close()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    def reroute(self, conninfo: str) -> str:
        """Return `conninfo` with this proxy's address."""
        return make_conninfo(conninfo, host="127.0.0.1", port=self._port)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Traffic]:
        """Count what passes inside a block, from nothing."""
        traffic = Traffic()
        with self.lock:
            self.traffic = traffic
        yield traffic
        with self.lock:
            self.traffic = Traffic()

    def hush(self, *, newcomers: bool = False) -> None:
        """Forward nothing more on the present connections; with `newcomers`, also accept others and say nothing."""
        with self.lock:
            self._takes_newcomers = not newcomers
            for line in self._lines:
                line.is_silent = True

    def arm(self, cut: Cut) -> None:
        """Carry out `cut` on the connection on which the next simple query with its `when` comes."""
        with self.lock:
            self.order = cut

    def disarm(self) -> None:
        """Take back an order that was not carried out; lines on which it waits for its byte live on."""
        with self.lock:
            self.order = None
            for line in self._lines:
                line.forget_cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._ear.accept()
            except OSError:
                return
            with self.lock:
                self._lines = [line for line in self._lines if line.is_alive()]
                if not self._takes_newcomers:
                    self._held.append(client)
                    continue
                try:
                    self._lines.append(Line(self, client, socket.create_connection(self.target)))
                    self._lines[-1].start()
                except OSError:
                    client.close()


class Line(threading.Thread):
    """One connection: what comes from the client goes to the server, and the other way round."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__()
        self.is_silent = False
        self._proxy = proxy
        self._client = client
        self._server = server
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._from_client = b""
        self._from_server = b""
        self._bare_answers = 0  # single bytes that answer a request for encryption
        self._is_started = False
        self._is_ready = False
        self._speaker: Side = "server"
        self._cut: Cut | None = None

    def run(self) -> None:
        """Forward until one side ends or the line is cut."""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        poll.register(self._server, select.POLLIN)
        open_ends = 2
        with self._client, self._server, contextlib.suppress(OSError):
            while open_ends and not (self._cut and self._cut.done):
                for descriptor, _ in poll.poll():
                    source = self._client if descriptor == self._client.fileno() else self._server
                    data = source.recv(CHUNK)
                    if not data and not self.is_silent:
                        return
                    if not data:  # the other side does not hear of it
                        poll.unregister(source)
                        open_ends -= 1
                    elif not self.is_silent and not (self._cut and self._cut.done):
                        self._pass_on(data, "server" if source is self._client else "client")
            self.hang_up()

    def forget_cut(self) -> None:
        """Let the line pass everything again, unless it was cut."""
        if self._cut is not None and not self._cut.done:
            self._cut = None

    def hang_up(self) -> None:
        """End both connections; what was sent before still arrives."""
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, data: bytes, toward: Side) -> None:
        with self._proxy.lock:  # counted before anybody can have seen it
            if toward == "server":
                data = b"".join(self._note_question(message) for message in self._messages_of_client(data))
            else:
                self._note_answer(data)
                data = self._cut.let_through(data, "client") if self._cut else data
        (self._server if toward == "server" else self._client).sendall(data)

    def _messages_of_client(self, data: bytes) -> Iterator[bytes]:
        """Yield the whole messages that `data` completes; the first ones have no type."""
        self._from_client += data
        while len(self._from_client) >= 5:
            start = 1 if self._is_started else 0
            end = start + int.from_bytes(self._from_client[start : start + 4], "big")
            if len(self._from_client) < end:
                return
            message, self._from_client = self._from_client[:end], self._from_client[end:]
            if not self._is_started:
                upper, lower = (int.from_bytes(message[at : at + 2], "big") for at in (4, 6))
                self._is_started = upper != NEGOTIATION
                self._bare_answers += upper == NEGOTIATION and lower != CANCEL
            yield message

    def _note_question(self, message: bytes) -> bytes:
        """Count a message of the client; return what of it is to be passed on."""
        is_query = self._is_ready and message[:1] == b"Q"
        if self._is_ready:
            self._proxy.traffic.sent.append(message[:1].decode())
            self._proxy.traffic.flights += self._speaker == "server"
        if is_query:
            self._proxy.traffic.queries.append(message[5:-1].decode())
        self._speaker = "client"
        order = self._proxy.order
        if order is not None and is_query and order.when in message:
            self._cut, self._proxy.order = order, None
        return self._cut.let_through(message, "server") if self._cut else message

    def _note_answer(self, data: bytes) -> None:
        """Count the messages of the server that `data` completes."""
        bare, self._bare_answers = min(len(data), self._bare_answers), max(0, self._bare_answers - len(data))
        self._from_server += data[bare:]
        while len(self._from_server) >= 5:
            end = 1 + int.from_bytes(self._from_server[1:5], "big")
            if len(self._from_server) < end:
                return
            if self._from_server[:1] == b"Z":
                self._proxy.traffic.exchanges += self._is_ready
                self._is_ready = True
            self._from_server = self._from_server[end:]
            self._speaker = "server"
