"""The real Python runtimes of two platforms, each serving one application on a port of this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError

from support import eventually

PATIENCE = 60.0
"""Seconds to wait for a runtime before something is wrong."""


class Host(NamedTuple):
    """A runtime that serves on `port`."""

    port: int

    def get(self, n: int) -> Any:
        """Return the JSON that is served for ``?n=N``, or the status if it is an error."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/?n={n}", timeout=PATIENCE) as answer:
                return json.load(answer)
        except HTTPError as error:
            return error.code

    def get_all(self, count: int) -> list[Any]:
        """Return what is served for that many requests at the same time."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(self.get, range(count)))


@contextmanager
def vercel(module: Path, variables: Mapping[str, str]) -> Iterator[Host]:
    """Let Vercel's runtime serve ``app`` of `module`."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = str(module.with_suffix(".ipc"))
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)
        handler = {"ENTRYPOINT": module.name, "ENTRYPOINT_ABS": str(module), "MODULE_NAME": module.stem}
        names = {f"__VC_HANDLER_{name}": value for name, value in {**handler, "VARIABLE_NAME": "app"}.items()}
        command = [sys.executable, "-m", "vercel_runtime.vc_init"]
        with running(command, module.parent, {**variables, **names, "VERCEL_IPC_PATH": path}):
            channel, _ = listener.accept()
            channel.settimeout(PATIENCE)
            with channel, channel.makefile("rb") as stream:
                yield Host(started_port(stream.read1))


def started_port(read: Any) -> int:
    """Return the port that the messages of Vercel's runtime tell: JSON, each ended by a zero byte."""
    said = b""
    while data := read(65536):
        said += data
        for message in map(json.loads, said.split(b"\0")[:-1]):
            if message["type"] == "server-started":
                return int(message["payload"]["httpPort"])
    raise AssertionError(f"the runtime has ended: {said.decode()}")


@contextmanager
def functions_framework(module: Path, variables: Mapping[str, str]) -> Iterator[Host]:
    """Let Google's functions framework serve ``handler`` of `module`, with eight threads."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "functions_framework", "--target=handler", f"--source={module}"]
    command += ["--host=127.0.0.1", f"--port={port}"]
    with running(command, module.parent, {**variables, "THREADS": "8"}):
        assert eventually(lambda: is_listening(port), PATIENCE)
        yield Host(port)


def is_listening(port: int) -> bool:
    """Tell whether anybody listens on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Run `command` for the length of the block; then it is killed with all its children."""
    environ = {**os.environ, **variables}
    with subprocess.Popen(command, cwd=folder, env=environ, start_new_session=True) as process:
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
