"""Ends without an event loop: a collected engine, the exit of the interpreter, a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import pid_of, write
from support import entries, eventually, in_child, sessions

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit.testing import PostgresServer

Run = Callable[..., Any]


def test_collected_engine_closes_its_connections(run: Run, server: PostgresServer, superuser: Any) -> None:
    """An engine that nobody keeps leaves no session on the server and no warning."""
    engine = AsyncEngine(conninfo=server.dsn, application_name="collected")
    run(pid_of(engine))
    assert len(sessions(superuser, "collected")) == 1
    del engine
    gc.collect()
    assert eventually(lambda: sessions(superuser, "collected") == [])


def test_engine_collected_inside_a_loop(run: Run, server: PostgresServer, superuser: Any) -> None:
    """It does not matter whether a loop runs just then."""

    async def main() -> None:
        await pid_of(AsyncEngine(conninfo=server.dsn, application_name="collected"))
        gc.collect()

    run(main())
    assert eventually(lambda: sessions(superuser, "collected") == [])


@pytest.mark.parametrize("library", ["asyncio", "uvloop"])
@pytest.mark.parametrize("stage", ["idle", "forgotten", "persistent loop"])
def test_interpreter_exits_with_an_open_engine(
    server: PostgresServer, superuser: Any, library: str, stage: str
) -> None:
    """A process that just ends says nothing, and its backends are gone."""
    ending = {
        "idle": f"{library}.run(main())",
        "forgotten": f"{library}.run(engine.connect())",
        "persistent loop": "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
    }[stage]
    program = f"""
        import asyncio, logging, {library}
        from serverless_pg_kit import AsyncEngine

        logging.getLogger("asyncio").setLevel("ERROR")  # on a busy machine it warns of steps that took long
        engine = AsyncEngine(conninfo={server.dsn!r}, application_name="exits")

        async def main():
            async with engine.request() as conn:
                await conn.execute("select 1")

        {ending}
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert eventually(lambda: sessions(superuser, "exits") == [])


def test_sync_close_of_an_async_engine_needs_a_loop_only_for_open_requests(run: Run, engine: AsyncEngine) -> None:
    """An engine whose requests have all ended is closed in a loop of its own."""
    run(pid_of(engine))
    run(engine.close())
    assert engine.stats.open == 0


def test_fork_between_requests(run: Run, engine: AsyncEngine) -> None:
    """Parent and child go on with a backend of their own each."""
    parents = run(pid_of(engine))
    reader, writer = os.pipe()
    in_child(lambda: os.write(writer, str(run(pid_of(engine))).encode()))
    childs = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)
    assert run(pid_of(engine)) == parents != childs


def test_fork_in_mid_request(engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """A child born inside a request ends nothing of its parent's, and has requests of its own."""

    async def main() -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger values (1)")
            in_child(lambda: asyncio.run(write(engine.request(), 2)))
            assert entries(superuser) == [2]
        assert entries(superuser) == [1, 2]

    asyncio.run(main())
    assert engine.stats.connects == 1
