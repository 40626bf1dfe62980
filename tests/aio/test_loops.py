"""Event loops that come and go: a connection belongs to none of them."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aio_support import pid_of, soon, write
from support import entries, eventually, kill, sessions

from serverless_pg_kit import AsyncEngine
from serverless_pg_kit.session import Baseline

Run = Callable[..., Any]

INVOCATIONS = 100


def test_hundred_invocations_use_one_connection(run: Run, engine: AsyncEngine) -> None:
    """A function that calls ``asyncio.run`` each time keeps its connection."""
    assert len({run(pid_of(engine)) for _ in range(INVOCATIONS)}) == 1
    assert engine.stats.connects == 1


def test_new_loop_is_no_reason_to_put_the_object_back(
    run: Run, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an invocation of its own loop changes on a connection is the kit's, and costs no more than one look."""
    for _ in range(10):
        run(pid_of(engine))
    monkeypatch.delattr(Baseline, "_put_back")
    for _ in range(3):
        run(pid_of(engine))
    assert (engine.stats.connects, engine.stats.open) == (1, 1)


def test_invocations_go_on_after_the_connection_was_lost(run: Run, engine: AsyncEngine, superuser: Any) -> None:
    """A connection that was killed between two invocations is replaced in the next one, once each time."""
    pids: list[int] = []
    for number in range(INVOCATIONS):
        if number % 10 == 9:
            kill(superuser, *pids[-1:])
        pids.append(run(pid_of(engine)))
    assert len(set(pids)) == INVOCATIONS // 10 + 1
    assert engine.stats.losses == INVOCATIONS // 10


def test_persistent_loop(engine: AsyncEngine) -> None:
    """A host that keeps one loop and runs it for each invocation, as Mangum does, keeps the connection."""
    loop = asyncio.new_event_loop()
    try:
        pids = {loop.run_until_complete(pid_of(engine)) for _ in range(10)}
    finally:
        loop.close()
    assert len(pids) == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has Runner since Python 3.11")
def test_runner(engine: AsyncEngine) -> None:
    """Requests begun and ended by hand in several runs of one ``asyncio.Runner`` are one: it keeps their context."""
    with asyncio.Runner() as runner:
        conn = runner.run(engine.connect())
        assert runner.run(engine.connect()) is conn
        runner.run(engine.clean())
    assert engine.stats.commits == 1


def test_connection_that_was_contended_in_an_earlier_loop(run: Run, engine: AsyncEngine) -> None:
    """psycopg's lock, once two tasks have competed for it, works in no other loop: the next request gets a new one."""

    async def compete() -> int:
        async with engine.request() as conn:
            await asyncio.gather(*(conn.execute("select pg_sleep(0.01)") for _ in range(3)))
            return conn.info.backend_pid

    assert len({run(compete()) for _ in range(3)}) == 1


def test_lock_is_renewed_only_with_the_loop(run: Run, engine: AsyncEngine) -> None:
    """Within one loop the connection object stays as it is: nothing has to be put back."""

    async def main() -> None:
        locks = []
        for _ in range(3):
            async with engine.request() as conn:
                locks.append(conn.lock)
        assert locks[0] is locks[1] is locks[2]

    run(main())


def test_threads_with_loops_of_their_own(run: Run, make_engine: Any, superuser: Any, ledger: str) -> None:
    """Several loops share one engine and its places: who waits in one is woken by whoever ends in another."""
    engine = make_engine(max_size=2)
    errors: list[BaseException] = []

    async def main(first: int) -> None:
        for number in range(first, first + 20):
            await write(engine.request(), number)

    def work(first: int) -> None:
        try:
            run(main(first))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(100 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(entries(superuser)) == 120
    assert len(sessions(superuser, engine.settings.application_name)) <= 2


def test_woken_after_its_loop_was_closed(make_engine: Any) -> None:
    """A place granted to a task whose loop was closed meanwhile comes back when that task is collected."""
    engine = make_engine(max_size=1)

    async def wait_in_line() -> None:
        async with engine.request(join=False):
            pass

    async def main() -> None:
        async with engine.request():
            forget_a_loop(wait_in_line)
        gc.collect()
        assert engine.stats.in_use == 0
        await asyncio.wait_for(pid_of(engine), 10)

    asyncio.run(main())


def forget_a_loop(work: Callable[[], Any]) -> None:
    """Let `work` begin to wait in a loop of another thread, which is closed without another word."""

    def begin() -> None:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # for the sake of the test: "Task was destroyed"
        task = loop.create_task(work())
        loop.run_until_complete(asyncio.sleep(0))
        assert not task.done()
        loop.close()

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # psycopg's, about the connection that nobody has closed
@pytest.mark.parametrize("stage", ["statement", "commit"])
def test_request_whose_loop_was_closed(engine: AsyncEngine, superuser: Any, stage: str) -> None:
    """A request whose task is collected in mid-way is no error, and its connection is closed with the next one."""

    async def work() -> None:
        async with engine.request() as conn:
            if stage == "statement":
                await conn.execute("select pg_sleep(30)")

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(work())
    loop.run_until_complete(soon(lambda: engine.stats.connects == 1))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    del task
    gc.collect()
    pid = asyncio.run(pid_of(engine))
    assert eventually(lambda: sessions(superuser, engine.settings.application_name) == [pid] or stage == "statement")
    assert engine.stats.in_use == 0
