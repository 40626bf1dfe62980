"""Hosts that start workers: by fork with a connection already open, by a fork server, and gunicorn's --preload."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from programs import backend_of, roots
from support import eventually, sessions

from serverless_pg_kit import AsyncEngine

SYNC = """
from serverless_pg_kit import Engine
engine = Engine()

def backend():
    with engine.request() as conn:
        return conn.info.backend_pid
"""

ASYNC = """
import asyncio
from serverless_pg_kit import AsyncEngine
engine = AsyncEngine()

async def ask():
    async with engine.request() as conn:
        return conn.info.backend_pid

def backend():
    return asyncio.run(ask())
"""

APPLICATION = """
import json, os
MASTER = backend()  # before there are any workers

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), backend(), MASTER]).encode()]
"""

WORKERS = 2


@contextmanager
def gunicorn(folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """Run the module ``preloaded`` in `folder` under gunicorn; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--preload", "--workers", str(WORKERS), "--bind", f"127.0.0.1:{port}", "--worker-tmp-dir", "/tmp"]
    command = [sys.executable, "-m", "gunicorn", *options, "preloaded:app"]
    environ = {**os.environ, **variables, "PYTHONPATH": roots(folder)}
    with subprocess.Popen(command, env=environ, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


def ask(url: str) -> tuple[int, int, int] | None:
    """Return a worker's pid, the pid of its backend and that of the master's; ``None`` if nobody answers yet."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            worker, backend, master = json.load(response)
            return worker, backend, master
    except OSError:
        return None


@pytest.mark.parametrize("shell", [SYNC, ASYNC], ids=["sync", "async"])
def test_preloaded_application_gives_each_worker_its_own_backend(
    tmp_path: Path, superuser: Any, variables: Mapping[str, str], fleet: str, shell: str
) -> None:
    """The master's connection, open before the fork, stays the master's: no worker uses it, and none ends it."""
    (tmp_path / "preloaded.py").write_text(shell + APPLICATION)
    with gunicorn(tmp_path, variables) as url:
        answers: dict[int, set[int]] = {}
        masters: set[int] = set()

        def all_have_answered() -> bool:
            answer = ask(url)
            if answer is not None:
                worker, backend, master = answer
                answers.setdefault(worker, set()).add(backend)
                masters.add(master)
            return len(answers) == WORKERS

        assert eventually(all_have_answered, seconds=30)
        [master] = masters
        backends = set.union(*answers.values())
        assert all(len(own) == 1 for own in answers.values())
        assert len(backends) == WORKERS
        assert master not in backends
        assert master in sessions(superuser, fleet)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_use_their_own_backends(make_engine: Any, server: Any, fleet: str, method: str) -> None:
    """Parent and children, however they were started, each have one of their own, and the parent's goes on."""
    engine = make_engine()
    with engine.request() as conn:
        own = conn.info.backend_pid
    with multiprocessing.get_context(method).Pool(WORKERS) as pool:
        others = set(pool.starmap(backend_of, [(server.dsn, fleet)] * WORKERS, chunksize=1))
    assert own not in others
    with engine.request() as conn:
        assert conn.info.backend_pid == own


def test_async_engine_of_the_parent_is_new_in_a_child(server: Any, fleet: str) -> None:
    """A child that was forked between two invocations opens its own connection, and closes none of the parent's."""
    import asyncio

    engine = AsyncEngine(conninfo=server.dsn, application_name=fleet)

    async def backend() -> int:
        async with engine.request() as conn:
            return conn.info.backend_pid

    own = asyncio.run(backend())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - the child's coverage is not collected
        try:
            os.write(writer, str(asyncio.run(backend())).encode())
            asyncio.run(engine.close())
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(writer)
    other = int(os.read(reader, 20))
    os.close(reader)
    assert asyncio.run(backend()) == own != other
    asyncio.run(engine.close())
