"""Many at once: threads, tasks, loops and forks share the kit's connections, and nobody another's transaction."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy_stage import Make, Stage, awaited
from support import SYNC_ONLY, entries, eventually, in_child, sessions

from serverless_pg_kit import AsyncEngine, Engine
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_sqlalchemy import create_async_engine, create_engine

REQUESTS = 200
BACKENDS = 5
INSERT = sa.text("insert into ledger values (:entry)")
OWN = sa.text("select count(*) from ledger where xmin::text = pg_current_xact_id()::text")
"""How many entries this very transaction has made."""

PID = sa.text("select pg_backend_pid()")


class Busy:
    """Who is at work on which backend."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.now: set[int] = set()
        self.shared = 0

    def enter(self, pid: int) -> None:
        """Note that somebody begins to work on the backend `pid`."""
        self.shared += pid in self.now
        self.pids.add(pid)
        self.now.add(pid)


@SYNC_ONLY
def test_threads(make_engine: Any, superuser: Any, ledger: str) -> None:
    """200 sessions in 20 threads on five backends: all succeed, and each is alone in its transaction."""
    kit = make_engine(max_size=BACKENDS, max_wait=60)
    engine, busy = create_engine(kit), Busy()

    def serve(number: int) -> None:
        with Session(engine) as session:
            busy.enter(pid := session.scalar(PID))
            session.execute(INSERT, {"entry": number})
            assert session.scalar(OWN) == 1
            busy.now.discard(pid)
            if number % 4 == 3:
                session.rollback()
            else:
                session.commit()

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(serve, range(REQUESTS)))
    assert entries(superuser) == [number for number in range(REQUESTS) if number % 4 != 3]
    assert (len(busy.pids) <= BACKENDS, busy.shared, kit.stats.in_use) == (True, 0, 0)


def test_tasks(server: PostgresServer, fleet: str, superuser: Any, ledger: str) -> None:
    """200 tasks on five backends: all succeed, and each is alone in its transaction."""
    kit = AsyncEngine(conninfo=server.dsn, application_name=fleet, max_size=BACKENDS, max_wait=60)
    engine, busy = create_async_engine(kit), Busy()

    async def serve(number: int) -> None:
        async with AsyncSession(engine) as session:
            busy.enter(pid := await session.scalar(PID))
            await session.execute(INSERT, {"entry": number})
            assert await session.scalar(OWN) == 1
            busy.now.discard(pid)
            if number % 4 != 3:
                await session.commit()

    async def main() -> None:
        await asyncio.gather(*map(serve, range(REQUESTS)))
        await kit.close()

    asyncio.run(main())
    assert entries(superuser) == [number for number in range(REQUESTS) if number % 4 != 3]
    assert (len(busy.pids) <= BACKENDS, busy.shared, kit.stats.in_use) == (True, 0, 0)


def test_loop_for_each_invocation(server: PostgresServer, fleet: str) -> None:
    """Connections survive from one ``asyncio.run`` to the next."""
    kit = AsyncEngine(conninfo=server.dsn, application_name=fleet)
    engine = create_async_engine(kit)

    async def serve() -> int:
        async with engine.connect() as conn:
            return int(await conn.scalar(PID) or 0)

    assert len({asyncio.run(serve()) for _ in range(4)}) == 1
    asyncio.run(kit.close())


def test_cancelled_task(server: PostgresServer, fleet: str, superuser: Any, ledger: str) -> None:
    """A task that is cancelled in a statement or in line leaves its place to the next one, and nothing committed."""
    kit = AsyncEngine(conninfo=server.dsn, application_name=fleet, max_size=1)
    engine = create_async_engine(kit)

    async def serve() -> None:
        async with engine.begin() as conn:
            await conn.execute(INSERT, {"entry": 1})
            await conn.execute(sa.text("select pg_sleep(60)"))

    async def main() -> None:
        tasks = [asyncio.create_task(serve()) for _ in range(3)]
        while not kit.stats.in_use or kit.stats.waiting < 2:
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 3
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("select 1")) == 1
        await kit.close()

    asyncio.run(main())
    assert (entries(superuser), kit.stats.in_use) == ([], 0)


@SYNC_ONLY
def test_collected_connection_comes_back(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A connection that nobody closed is rolled back and given back when it is collected."""
    kit = make_engine(max_size=1, max_wait=30)
    engine = create_engine(kit)
    lost: sa.Connection | None = engine.connect()
    assert lost is not None
    lost.execute(INSERT, {"entry": 1})
    lost = None
    gc.collect()
    with engine.connect() as conn:
        assert conn.scalar(sa.text("select 1")) == 1
    assert (entries(superuser), kit.stats.connects, kit.stats.in_use) == ([], 1, 0)


@pytest.mark.parametrize("ends", ["in a loop", "without one"])
def test_collected_async_connection(server: PostgresServer, fleet: str, superuser: Any, ends: str) -> None:
    """An async connection that nobody closed frees its place when it is collected. SQLAlchemy warns of it."""
    kit = AsyncEngine(conninfo=server.dsn, application_name=fleet, max_size=1, max_wait=30)
    engine = create_async_engine(kit)

    async def lose() -> None:
        conn = await engine.connect()
        await conn.execute(sa.text("select 1"))
        if ends == "in a loop":
            del conn
            collect()

    def collect() -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gc.collect()
        assert {warning.category for warning in caught} <= {exc.SAWarning, RuntimeWarning}

    async def serve() -> None:
        async with engine.connect() as conn:
            assert await conn.scalar(sa.text("select 1")) == 1
        await kit.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exc.SAWarning)
        asyncio.run(lose())
    collect()
    asyncio.run(serve())
    assert eventually(lambda: sessions(superuser, fleet) == [])


@SYNC_ONLY
def test_fork(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A child has connections of its own, and lets the transaction alone that its parent was in."""
    engine = create_engine(make_engine())
    with engine.begin() as conn:
        conn.execute(INSERT, {"entry": 1})
        pid = conn.scalar(PID)

        def child() -> None:
            with engine.begin() as other:
                other.execute(INSERT, {"entry": 2})
                assert other.scalar(PID) != pid
            conn.close()  # as its collection would
            gc.collect()

        in_child(child)
        assert conn.scalar(PID) == pid
        conn.execute(INSERT, {"entry": 3})
    assert entries(superuser) == [1, 2, 3]


@SYNC_ONLY
def test_dispose_after_a_fork(make_engine: Any) -> None:
    """``dispose()``, of either kind, may be called in the child, as SQLAlchemy advises; it is not needed."""
    engine = create_engine(make_engine())
    with engine.connect() as conn:
        pid = conn.scalar(PID)

    def child() -> None:
        for close in (False, True):
            engine.dispose(close=close)
            with engine.connect() as conn:
                assert conn.scalar(PID) != pid

    in_child(child)
    with engine.connect() as conn:
        assert conn.scalar(PID) == pid


def test_dispose(stage: Stage) -> None:
    """``dispose()`` closes idle connections, lets those in use go on, and the engine can be used again."""

    def work() -> None:
        with stage.engine.connect() as conn:
            with stage.engine.connect() as other:
                other.scalar(PID)
            stage.engine.dispose()
            assert stage.kit.stats.open == 1
            assert conn.scalar(sa.text("select 1")) == 1
        assert stage.kit.stats.open == 0
        with stage.engine.connect() as conn:
            assert conn.scalar(sa.text("select 1")) == 1
        stage.engine.dispose(close=False)
        assert stage.kit.stats.open == 1

    stage.run(work)


def test_request_around(stage: Stage, superuser: Any, ledger: str) -> None:
    """Inside a request of the kit a session has its own connection and transaction, and the request's deadline."""

    def work() -> None:
        scope = stage.kit.scope(deadline=20)
        conn = awaited(awaited(scope.__aenter__() if stage.is_async else scope.__enter__()).connection)
        awaited(conn.execute("insert into ledger values (1)"))
        with stage.engine.begin() as own:
            own.execute(INSERT, {"entry": 2})
            assert own.scalar(sa.text("select setting::int from pg_settings where name = 'statement_timeout'")) <= 20500
        scope.fail()
        awaited(scope.end())

    stage.run(work)
    assert entries(superuser) == [2]


def test_invalidate_and_detach(stage: Stage) -> None:
    """``invalidate()`` closes the connection; ``detach()`` keeps it from the pool, and its end closes it or not, but
    frees its place."""

    def work() -> None:
        with stage.engine.connect() as conn:
            pid = conn.scalar(PID)
            conn.invalidate()
            conn.rollback()
            assert conn.scalar(PID) != pid
        with stage.engine.connect() as conn:
            conn.detach()
            assert conn.scalar(sa.text("select 1")) == 1
        assert stage.kit.stats.in_use == 0
        with stage.engine.connect() as conn:
            assert conn.scalar(sa.text("select 1")) == 1

    stage.run(work)


def test_listeners(stage: Stage) -> None:
    """The pool's events come in SQLAlchemy's order; ``connect`` finds an idle connection, as its recipes need."""
    seen: list[str] = []
    pool = stage.engine.pool

    def note(name: str) -> Callable[..., None]:
        return lambda *args: seen.append(name)

    for name in ("connect", "checkout", "reset", "checkin", "close", "invalidate"):
        event.listen(pool, name, note(name))

    @event.listens_for(pool, "connect")
    def set_search_path(conn: Any, record: Any) -> None:
        existing = conn.autocommit
        conn.autocommit = True
        cursor = conn.cursor()
        cursor.execute("set session search_path = 'pg_temp, public'")
        cursor.close()
        conn.autocommit = existing

    def work() -> None:
        for _ in range(2):
            with stage.engine.connect() as conn:
                assert conn.scalar(sa.text("show search_path")) == '"pg_temp, public"'
                conn.rollback()
                assert conn.scalar(sa.text("show search_path")) == '"pg_temp, public"'
        with stage.engine.connect() as conn:
            conn.invalidate()

    stage.run(work)
    usual = ["connect", "checkout", "reset", "checkin", "close"]
    assert seen == [*usual, *usual, "connect", "checkout", "invalidate", "close", "checkin"]


def test_pre_ping(make: Make) -> None:
    """``pool_pre_ping`` is allowed, and never has anything to do."""
    stage = make({"pool_pre_ping": True})

    def work() -> None:
        for _ in range(3):
            with stage.engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1

    stage.run(work)
    assert stage.kit.stats.connects == 1


@SYNC_ONLY
def test_engines_share_the_kit(make_engine: Any) -> None:
    """Two engines of SQLAlchemy and plain requests share the connections of one engine of the kit."""
    kit: Engine = make_engine(max_size=1)
    one, other = create_engine(kit), create_engine(kit, isolation_level="AUTOCOMMIT")
    for _ in range(2):
        for engine in (one, other):
            with engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1
        with kit.request() as plain:
            assert plain.execute("select 1").fetchone() == (1,)
            assert not plain.autocommit
    assert kit.stats.connects == 1
    assert threading.active_count() == 1
