"""Where Lambda's benchmarks play: a server with the logistics tables, a long line to it, containers, a watcher."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from serverless_pg_kit.simulator.contestants import examples_folder
from serverless_pg_kit.testing import LambdaContainer, PostgresServer

IDLE_LOOP = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"
"""Runs when nothing else wants to: who waits for a long line leaves a core idle, and that takes longer to wake up than
what is measured here."""


class Stage:
    """For the length of a ``with`` block; `options` are those of `PostgresServer`, and it is all closed at the end."""

    def __init__(self, **options: Any) -> None:
        self._stack = ExitStack()
        self.server = self._stack.enter_context(PostgresServer(**options))
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        dsn = self.server.superuser_dsn
        self.watcher = self._stack.enter_context(psycopg.connect(dsn, dbname="app", autocommit=True))
        with psycopg.connect(self.server.dsn) as conn:
            for name in ("schema.sql", "data.sql"):
                conn.execute((examples_folder() / "logistics" / name).read_bytes())
        self._made, self._line = 0, 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def container(self, handler: str, code: str = "", *, dsn: str = "", **options: Any) -> LambdaContainer:
        """Return a container of `handler`: in a module with that `code`, or ``"module.name"`` of the examples."""
        if code:
            self._made += 1
            (self.folder / f"function{self._made}.py").write_text(code)
            handler = f"function{self._made}.{handler}"
        roots = os.pathsep.join([str(self.folder), str(examples_folder()), *sys.path])
        variables = {"DATABASE_URL": dsn or self.server.dsn, "PYTHONPATH": roots}
        options = {"timeout": 60.0, **options}
        made = LambdaContainer(handler, folder=self.folder, environment=variables, **options)
        return self._stack.enter_context(made)

    def distant(self, seconds: float) -> str:
        """Return a DSN of the server at the end of a line on which a round trip takes `seconds` more."""
        line = self._start(__file__, self.server.host, str(self.server.port), str(seconds / 2))
        self._start("-c", IDLE_LOOP)
        self._line = line.pid
        assert line.stdout is not None
        return make_conninfo(self.server.dsn, port=int(line.stdout.readline()))

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *arguments]
        process = self._stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        self._stack.callback(process.kill)
        return process

    def sessions(self, condition: str = "true") -> list[int]:
        """Return the pids of the functions' sessions that meet `condition`."""
        query: Any = f"select pid from pg_stat_activity where usename = 'app' and {condition}"
        return [pid for (pid,) in self.watcher.execute(query)]

    def pin(self) -> str:
        """Put this process, the containers and all backends on one core, and a long line on the others; say how far
        that went."""
        core = {min(os.sched_getaffinity(0))}
        tasks = [int(entry) for pid in family(os.getpid()) - {self._line} for entry in os.listdir(f"/proc/{pid}/task")]
        try:
            for task in (*tasks, *self.sessions()):
                os.sched_setaffinity(task, core)
        except PermissionError:
            return "backends not pinned: the server belongs to another user"
        return "Runtime API, runtime clients and backends on one core"


def relay(host: str, port: str, delay: str) -> None:
    """Be a line to the server at `host` and `port` that keeps what passes, in either direction, for `delay` seconds.

    As long as anybody is connected it looks all the time: a sleep would last longer, and not always as long. So it
    leaves the first core, where all others are put, to them. Prints its own port.
    """
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {min(cores)} or cores)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # Linux halts what takes a core in real time
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    poll, peers = select.poll(), dict[int, tuple[socket.socket, socket.socket]]()
    poll.register(listener, select.POLLIN)
    under_way: deque[tuple[float, socket.socket, bytes]] = deque()
    while True:
        for descriptor, _ in poll.poll(0 if peers or under_way else None):
            if descriptor == listener.fileno():
                connect_ends(listener, (host, int(port)), poll, peers)
            else:
                source, target = peers[descriptor]
                data = receive(source)
                under_way.append((time.perf_counter() + float(delay), target, data))
                if not data:
                    poll.unregister(descriptor)
                    del peers[descriptor]
        while under_way and time.perf_counter() >= under_way[0][0]:
            _, target, data = under_way.popleft()
            pass_on(target, data)


def connect_ends(
    listener: socket.socket,
    server: tuple[str, int],
    poll: select.poll,
    peers: dict[int, tuple[socket.socket, socket.socket]],
) -> None:
    """Accept a client, connect it to the `server`, and look at both ends from now on."""
    ends = listener.accept()[0], socket.create_connection(server)
    for source, target in (ends, ends[::-1]):
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peers[source.fileno()] = source, target
        poll.register(source, select.POLLIN)


def receive(source: socket.socket) -> bytes:
    """Return what has come from `source`, nothing if that is closed."""
    try:
        return source.recv(65536)
    except OSError:
        return b""


def pass_on(target: socket.socket, data: bytes) -> None:
    """Send `data` to `target`; without any, tell it that there will be no more."""
    with suppress(OSError):
        if data:
            target.sendall(data)
        else:
            target.shutdown(socket.SHUT_WR)


def family(pid: int) -> set[int]:
    """Return `pid` and the pids of all that came from it."""
    children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    return {pid}.union(*(family(int(child)) for some in children for child in some))


if __name__ == "__main__":
    relay(*sys.argv[1:])
