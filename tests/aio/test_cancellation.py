"""Requests that are cancelled: nothing leaks, and what became of them is told."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from aio_support import Interrupted, pid_of, sleepers, slow_commit, soon, write
from psycopg.pq import TransactionStatus
from support import entries, eventually, sessions

from serverless_pg_kit import AcquireTimeout, AsyncEngine, CommitUnknown
from serverless_pg_kit.aio import waiting
from serverless_pg_kit.events import Committed, Event

Run = Callable[..., Any]

SINCE_311 = pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has this since Python 3.11")

REQUESTS = 1000
AT_ONCE = 10


class Storm:
    """A thousand requests on `engine`, each of which is cancelled at a moment that the dice choose."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dice = random.Random(20)
        self.written: set[int] = set()  # by requests that were let alone to their end
        self.committed: set[int] = set()  # by requests that were cancelled, and know it
        self.unknown: set[int] = set()
        self.stages: Counter[str] = Counter()
        self.moments: Counter[int] = Counter()

    async def blow(self) -> None:
        """Serve all requests, some at a time; now and then all connections have to be opened anew."""
        longest = await self.waits_of_a_cold_request()
        for first in range(1, REQUESTS, AT_ONCE):
            if self.dice.random() < 0.3:
                await self.engine.close()
            moments = [self.dice.randint(1, longest) for _ in range(AT_ONCE)]
            await asyncio.gather(*(self.serve(first + number, moment) for number, moment in enumerate(moments)))

    async def waits_of_a_cold_request(self) -> int:
        """Return how often a request waits that has to connect."""
        counted = Interrupted(write(self.engine.request(), 0), 0, lambda: None)
        await counted
        self.written.add(0)
        return counted.waits

    async def serve(self, entry: int, moment: int) -> None:
        """Serve one request that is cancelled when it waits for the `moment`-th time."""
        request = self.engine.request(deadline=self.dice.choice([None, 30.0]))
        stage = ["acquire"]
        task = asyncio.create_task(self.await_interrupted(request, entry, moment, stage))
        try:
            await task
            self.written.add(entry)
        except asyncio.CancelledError:
            self.moments[moment] += 1
            self.stages[stage[0]] += 1
            if request.committed:
                self.committed.add(entry)
        except CommitUnknown:
            self.unknown.add(entry)

    async def await_interrupted(self, request: Any, entry: int, moment: int, stage: list[str]) -> None:
        task = asyncio.current_task()
        assert task is not None
        await Interrupted(self.work(request, entry, stage), moment, task.cancel)

    async def work(self, request: Any, entry: int, stage: list[str]) -> None:
        async with request as conn:
            stage[0] = "statement"
            await conn.execute("insert into ledger select %s from pg_sleep(0.001)", [entry])
            stage[0] = "end"


@pytest.mark.timeout(600)  # a slow machine takes long for so many connections
def test_storm_of_cancellations(run: Run, make_engine: Any, superuser: Any, ledger: str) -> None:
    """Of a thousand requests that are cancelled anywhere none leaks anything, and each knows what became of it."""
    engine = make_engine(max_size=5)
    storm = Storm(engine)

    async def main() -> set[Any]:
        await storm.blow()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert run(main()) == set()
    assert engine.stats.in_use == 0
    assert engine.stats.open <= 5
    assert eventually(lambda: len(sessions(superuser, engine.settings.application_name)) == engine.stats.open)
    kept = set(entries(superuser))
    assert kept - storm.unknown == (storm.written | storm.committed) - storm.unknown
    assert engine.stats.commits == len(kept - storm.unknown)
    assert set(storm.stages) == {"acquire", "statement", "end"}
    assert storm.committed
    assert len(storm.moments) > 5
    run(engine.close())
    assert eventually(lambda: sessions(superuser, engine.settings.application_name) == [])


@pytest.mark.parametrize("times", [1, 2, 3])
def test_cancelled_commit_is_finished(run: Run, engine: AsyncEngine, superuser: Any, ledger: str, times: int) -> None:
    """A COMMIT that is under way comes to its end, however often its task is cancelled, and the request knows it."""
    slow_commit(superuser, 0.3)

    async def main() -> None:
        request = engine.request()
        task = asyncio.create_task(write(request, 1))
        await soon(lambda: sleepers(superuser, engine) == 1)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert request.committed
        assert entries(superuser) == [1]

    run(main())
    assert (engine.stats.commits, engine.stats.in_use) == (1, 0)


def test_commit_is_finished_when_the_loop_ends(run: Run, make_engine: Any, superuser: Any, ledger: str) -> None:
    """A request that commits when ``asyncio.run`` ends, and cancels all tasks, is committed and known so."""
    events: list[Event] = []
    engine = make_engine(on_event=events.append)
    slow_commit(superuser, 0.3)
    request = engine.request()
    orphans: list[asyncio.Task[None]] = []

    async def main() -> None:
        orphans.append(asyncio.create_task(write(request, 1)))
        await soon(lambda: sleepers(superuser, engine) == 1)

    run(main())
    assert orphans[0].cancelled()
    assert request.committed
    assert [event for event in events if isinstance(event, Committed)]
    assert entries(superuser) == [1]
    run(write(engine.request(), 2))
    assert engine.stats.connects == 1


def test_cancelled_commit_that_takes_too_long_is_unknown(
    run: Run, engine: AsyncEngine, superuser: Any, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is held for ever by a COMMIT: who was cancelled and still does not know is told so."""
    monkeypatch.setattr(waiting, "CANCELLED_SECONDS", 0.05)
    slow_commit(superuser, 1.0)

    async def main() -> None:
        request = engine.request()
        task = asyncio.create_task(write(request, 1))
        await soon(lambda: sleepers(superuser, engine) == 1)
        task.cancel()
        with pytest.raises(CommitUnknown):
            await task
        assert not request.committed
        assert sleepers(superuser, engine) == 1

    run(main())
    assert (engine.stats.commits, engine.stats.open) == (0, 0)


def test_cancelled_commit_that_fails_raises_its_error(
    run: Run, engine: AsyncEngine, superuser: Any, ledger: str
) -> None:
    """The error of a COMMIT tells more than the cancellation that came while it was under way."""
    slow_commit(superuser, 0.3)

    async def main() -> None:
        task = asyncio.create_task(write(engine.request(), -1))
        await soon(lambda: sleepers(superuser, engine) == 1)
        task.cancel()
        with pytest.raises(psycopg.errors.CheckViolation):
            await task

    run(main())
    assert engine.stats.in_use == 0


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_cancelled_statement_is_cancelled_on_the_server(
    run: Run, engine: AsyncEngine, superuser: Any, ledger: str, deadline: float | None
) -> None:
    """``wait_for`` around a request ends its statement, rolls back, and keeps the connection."""

    async def slow() -> None:
        async with engine.request(deadline=deadline) as conn:
            await conn.execute("insert into ledger values (1)")
            await conn.execute("select pg_sleep(30)")

    async def main() -> None:
        pid = await pid_of(engine)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(slow(), 0.2)
        assert await pid_of(engine) == pid

    run(main())
    assert entries(superuser) == []
    assert sleepers(superuser, engine) == 0


@SINCE_311
def test_timeout_around_a_statement_leaves_the_request_usable(run: Run, engine: AsyncEngine) -> None:
    """``asyncio.timeout`` inside a request, around a savepoint, costs the statement and nothing else."""

    async def main() -> None:
        async with engine.request(deadline=30.0) as conn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), conn.transaction():
                    await conn.execute("select pg_sleep(30)")
            assert await (await conn.execute("select 1")).fetchone() == (1,)

    run(main())
    assert (engine.stats.commits, engine.stats.connects) == (1, 1)


@SINCE_311
def test_timeout_that_strikes_at_commit_is_one(run: Run, engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """``asyncio.timeout`` around a request still raises its TimeoutError if it was COMMIT that took too long."""
    slow_commit(superuser, 0.4)

    async def main() -> None:
        request = engine.request()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await write(request, 1)
        assert request.committed
        await asyncio.sleep(0)

    run(main())
    assert entries(superuser) == [1]


@SINCE_311
def test_group_whose_member_fails_ends_the_others_requests(
    run: Run, make_engine: Any, superuser: Any, ledger: str
) -> None:
    """A TaskGroup cancels its members: their requests roll back and give their connections back."""
    engine = make_engine(max_size=3)

    async def fail() -> None:
        await soon(lambda: sleepers(superuser, engine) == 3)
        raise LookupError("mine")

    async def slow(entry: int) -> None:
        async with engine.request() as conn:
            await conn.execute("insert into ledger select %s from pg_sleep(30)", [entry])

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for entry in range(5):
                group.create_task(slow(entry))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as raised:  # noqa: F821 - since 3.11
        run(main())
    assert raised.group_contains(LookupError, match="mine")
    assert (engine.stats.in_use, entries(superuser)) == (0, [])


def test_cancelled_in_line_leaves_the_line(run: Run, make_engine: Any) -> None:
    """Who is cancelled while waiting for a connection is not given one."""
    engine = make_engine(max_size=1)

    async def main() -> None:
        async with engine.request():
            waiting = [asyncio.ensure_future(alone(engine)) for _ in range(3)]
            await asyncio.sleep(0)
            for task in waiting[:2]:
                task.cancel()
        await waiting[2]
        assert [task.cancelled() for task in waiting] == [True, True, False]

    run(main())
    assert (engine.stats.in_use, engine.stats.connects) == (0, 1)


async def alone(engine: AsyncEngine) -> None:
    """Serve a request that joins none."""
    async with engine.request(join=False) as conn:
        await conn.execute("select 1")


@pytest.mark.parametrize("closes", [False, True])
def test_cancelled_between_grant_and_taking(run: Run, make_engine: Any, superuser: Any, closes: bool) -> None:
    """A connection granted to a request that is cancelled before it wakes goes to the next one, or is closed with the
    engine."""
    waiting: list[asyncio.Future[None]] = []
    granted: list[int] = []

    def interrupt(event: Event) -> None:
        """Called when the end of a request has granted its connection, and before the next one has woken."""
        if isinstance(event, Committed):
            granted.append(engine.stats.in_use)
            if closes:
                engine._condemn("closed")
            waiting[0].cancel()

    engine = make_engine(max_size=1, on_event=interrupt)

    async def main() -> None:
        async with engine.request():
            waiting.append(asyncio.ensure_future(alone(engine)))
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert (granted, engine.stats.in_use) == ([1], 0)
        assert engine.stats.open == (0 if closes else 1)
        await soon(lambda: len(sessions(superuser, engine.settings.application_name)) == engine.stats.open)
        await asyncio.wait_for(alone(engine), 10)

    run(main())


def test_time_out_in_line_is_told(run: Run, make_engine: Any) -> None:
    """A request that finds all connections in use waits for `max_wait` and no longer."""
    engine = make_engine(max_size=1, max_wait=0.1)

    async def main() -> None:
        async with engine.request():
            with pytest.raises(AcquireTimeout, match="max_size"):
                await alone(engine)

    run(main())


def test_cancelled_again_and_again(run: Run, engine: AsyncEngine, superuser: Any) -> None:
    """A statement ends on the server, and its connection can go on, even if its task is cancelled in every turn of the
    loop, as by the cancel scopes of anyio."""

    async def sleep() -> None:
        async with engine.request() as conn:
            await conn.execute("select pg_sleep(600)")

    async def main() -> None:
        task = asyncio.create_task(sleep())
        await soon(lambda: sleepers(superuser, engine) == 1)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sleepers(superuser, engine) == 0
        await pid_of(engine)

    run(main())
    assert (engine.stats.connects, engine.stats.cancels, engine.stats.in_use) == (1, 1, 0)


@pytest.mark.parametrize("deadline", [None, 30.0])
def test_cancelled_while_a_statement_is_being_sent(run: Run, engine: AsyncEngine, deadline: float | None) -> None:
    """To a backend that stands still, say: the task is cancelled, and nothing else is raised."""

    async def send(conn: Any) -> None:
        await conn.execute("select length(%s)", ["x" * 20_000_000])

    async def main() -> None:
        async with engine.request(deadline=deadline) as conn:
            pid = conn.info.backend_pid
            os.kill(pid, signal.SIGSTOP)
            try:
                task = asyncio.create_task(send(conn))
                await soon(lambda: conn.pgconn.transaction_status == TransactionStatus.ACTIVE)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            finally:
                os.kill(pid, signal.SIGCONT)
            raise LookupError

    with pytest.raises(LookupError):
        run(main())
    assert engine.stats.in_use == 0


def test_connection_is_closed_by_another_task(run: Run, engine: AsyncEngine, superuser: Any) -> None:
    """A statement whose connection another task closes fails, although nothing tells the event loop."""

    async def main() -> None:
        async with engine.request() as conn:
            task = asyncio.create_task(conn.execute("select pg_sleep(600)"))
            await soon(lambda: sleepers(superuser, engine) == 1)
            await conn.close()
            with pytest.raises(psycopg.OperationalError):
                await asyncio.wait_for(task, 30)

    run(main())
    assert engine.stats.in_use == 0
