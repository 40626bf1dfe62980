"""The process from which containers are forked.

Starting an interpreter and importing psycopg costs about 0.15 s of CPU, so sixty containers would keep a small machine
busy for many seconds, and the demo would measure that. The zygote pays once, before anything is measured: it imports
what containers share, holds no connection and no thread, and forks a container whenever it is told to. The handler
module itself is imported in each container, because on Lambda too its module-level code runs once in each.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping

from serverless_pg_kit.simulator import container, lifeline, wire
from serverless_pg_kit.simulator.errors import DemoError

SHARED_MODULES = ("psycopg", "serverless_pg_kit.aws_lambda", "logistics.gateway")

# The import roots are handed over before anything else is imported: the current folder, which `-c` puts first, may
# hold a json.py.
BOOTSTRAP = "import sys; sys.path[:] = sys.argv[3:]; from {0} import run; run(int(sys.argv[1]), int(sys.argv[2]))"


class Zygote:
    """The parent's handle on the process. Close it: every container dies with it.

    `examples` is the folder that holds the package `logistics`.
    """

    def __init__(self, examples: str) -> None:
        self._control, inner = wire.pair()
        with inner:
            arguments = [str(inner.fileno()), str(os.getpid()), *sys.path, examples]
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP.format(__name__), *arguments],
                pass_fds=[inner.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C belongs to the parent, which ends us in good order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def spawn(self, module: str, environment: Mapping[str, str]) -> socket.socket:
        """Fork a container for the handlers of `module` and return the channel to it; its first message is its pid.

        The caller closes the channel, upon which the container ends when it is next awake.
        """
        ours, theirs = wire.pair()
        order = json.dumps({"module": module, "environment": dict(environment)})
        with theirs:
            socket.send_fds(self._control, [order.encode()], [theirs.fileno()])
        return ours

    def reap(self) -> None:
        """Wait until the process is ready and all earlier containers, which the caller has killed, are gone.

        Until then those keep their pids, so that no signal meant for a container can hit a stranger. Raises `DemoError`
        if the process is gone.
        """
        with contextlib.suppress(OSError):
            wire.send(self._control, {"reap": True})
        if wire.receive(self._control) is None:
            raise DemoError("the process that forks the containers has ended")

    def close(self) -> None:
        """End the process and with it every container, frozen or not."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def run(control_fd: int, parent: int) -> None:
    """Be the zygote until the parent closes the other end of `control_fd` or dies."""
    lifeline.die_with(parent)
    for name in SHARED_MODULES:
        importlib.import_module(name)
    # Without this the children's first collection would touch, and so copy, every page they share with us.
    gc.freeze()
    with socket.socket(fileno=control_fd) as control:
        while True:
            message, fds, _, _ = socket.recv_fds(control, wire.MAX_MESSAGE, 1)
            if not message:
                return
            _obey(control, json.loads(message), fds)


def _obey(control: socket.socket, order: dict[str, object], fds: list[int]) -> None:
    if not fds:
        _wait_for_all()
        wire.send(control, {})
        return
    channel = socket.socket(fileno=fds[0])
    parent = os.getpid()
    if os.fork() == 0:
        control.close()
        _become_container(channel, order, parent)
    channel.close()


def _wait_for_all() -> None:
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def _become_container(channel: socket.socket, order: dict[str, object], parent: int) -> None:
    """Never returns: what the zygote has on its stack is not ours."""
    status = 1
    try:
        lifeline.die_with(parent)
        os.setpgid(0, 0)  # frozen and killed with all that it starts
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _silence()
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        container.serve(channel, str(order["module"]))
        status = 0
    finally:
        os._exit(status)


def _silence() -> None:
    """Log lines of sixty containers would tear the display; what goes wrong is in the answers."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
