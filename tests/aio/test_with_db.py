"""The decorator on async handlers."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest
from aio_support import pid_of
from support import entries

from serverless_pg_kit import AsyncEngine, Engine, TransactionFailed, default_async_engine, with_db

Run = Callable[..., Any]

EVENT: dict[str, Any] = {"n": 7}


class Context:
    """What a Lambda handler gets, as far as the kit looks at it."""

    def get_remaining_time_in_millis(self) -> float:
        """Return the remaining time in milliseconds."""
        return 900


async def answer(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
    """A handler: return the event's number, having asked the server."""
    row = await (await conn.execute("select %s::int", [event["n"]])).fetchone()
    return int(row[0]) if row else 0


async def with_extra(extra: str, event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
    """A handler that needs an argument more."""
    assert extra == "extra"
    return await answer(event, context, conn)


class Service:
    """A class whose methods are handlers."""

    async def method(self, event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
        """A handler."""
        return await answer(event, context, conn)

    async def __call__(self, event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
        return await answer(event, context, conn)


@pytest.mark.parametrize(
    "handler",
    [answer, Service().method, Service(), functools.partial(with_extra, "extra"), functools.partial(Service())],
    ids=["function", "bound method", "callable object", "partial with argument", "partial of an object"],
)
def test_every_kind_of_async_handler_is_wrapped(run: Run, engine: AsyncEngine, handler: Any) -> None:
    """The connection reaches whatever has to be awaited, and what is decorated still has to be."""
    decorated = with_db(engine)(handler)
    assert inspect.iscoroutinefunction(decorated)
    assert run(decorated(EVENT, None)) == 7
    assert (engine.stats.commits, engine.stats.in_use) == (1, 0)


def test_method_is_wrapped_in_its_class(run: Run, engine: AsyncEngine) -> None:
    """Decorated in the class body, an async method still gets its self."""

    class Decorated:
        factor = 2

        @with_db(engine)
        async def handler(self, event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
            return self.factor * await answer(event, context, conn)

    assert run(Decorated().handler(EVENT, None)) == 14


def test_sync_lambda_entry_runs_the_handler(engine: AsyncEngine) -> None:
    """The usual way to run an async handler in Lambda keeps one connection."""

    @with_db(engine)
    async def serve(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> int:
        return conn.info.backend_pid

    def handler(event: Any, context: Any) -> int:
        return asyncio.run(serve(event, context))

    assert len({handler(EVENT, None) for _ in range(5)}) == 1


def test_bare_decorator_uses_one_async_engine(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``@with_db`` alone takes the default engine that suits an async handler."""
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    monkeypatch.setattr("serverless_pg_kit.aws_lambda._defaults", {})
    bare, called = with_db(answer), with_db()(answer)
    try:
        assert [asyncio.run(bare(EVENT, None)), asyncio.run(called(EVENT, None))] == [7, 7]
        assert default_async_engine().stats.connects == 1
    finally:
        asyncio.run(default_async_engine().close())


def test_inject_renames(run: Run, engine: AsyncEngine, make_engine: Any) -> None:
    """Two databases are two engines and two names."""
    other = make_engine()

    @with_db(engine, inject="one")
    @with_db(other, inject="two")
    async def handler(event: Any, context: Any, one: Any, two: Any) -> bool:
        return bool(one.info.backend_pid != two.info.backend_pid)

    assert run(handler(EVENT, None))


def test_without_the_parameter_nothing_is_acquired(run: Run, engine: AsyncEngine) -> None:
    """An async handler without the parameter costs no connection until it touches the engine's."""

    @with_db(engine)
    async def handler(event: Any, context: Any) -> Any:
        if not event:
            return None
        return await (await (await engine.connection).execute("select 1")).fetchone()

    assert run(handler({}, None)) is None
    assert engine.stats.connects == 0
    assert run(handler(EVENT, None)) == (1,)


def test_remaining_time_bounds_the_statements(run: Run, engine: AsyncEngine) -> None:
    """The deadline comes from the Lambda context: the handler can still answer."""

    @with_db(engine)
    async def handler(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> Any:
        try:
            await conn.execute("select pg_sleep(30)")
        except psycopg.errors.QueryCanceled:
            return {"statusCode": 503}

    assert run(handler(EVENT, Context())) == {"statusCode": 503}


@pytest.mark.parametrize(("result", "kept"), [(None, True), ({"statusCode": 404}, True), ({"statusCode": 500}, False)])
def test_result_decides(run: Run, engine: AsyncEngine, superuser: Any, ledger: str, result: Any, kept: bool) -> None:
    """A proxy-style 5xx rolls back without an exception, everything else commits."""

    @with_db(engine)
    async def handler(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> Any:
        await conn.execute("insert into ledger values (1)")
        return result

    assert run(handler(EVENT, None)) == result
    assert entries(superuser) == ([1] if kept else [])


def test_exception_and_failed_transaction(run: Run, engine: AsyncEngine, superuser: Any, ledger: str) -> None:
    """The handler's own exception goes through; a database error that it hid is told."""

    @with_db(engine)
    async def handler(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.execute("insert into ledger values (1)")
        if event:
            raise LookupError("mine")
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("select 1/0")

    with pytest.raises(LookupError, match="mine"):
        run(handler(EVENT, None))
    with pytest.raises(TransactionFailed):
        run(handler({}, None))
    assert entries(superuser) == []


def test_mismatch_of_handler_and_engine_is_told_when_decorating(engine: AsyncEngine, server: Any) -> None:
    """An async handler needs an AsyncEngine, another one an Engine, and a generator can be no handler."""

    async def rows(event: Any, context: Any, conn: Any) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"answer.* is async: it needs an AsyncEngine"):
        with_db(Engine(conninfo=server.dsn))(answer)
    with pytest.raises(TypeError, match=r"is no async function: it needs an Engine"):
        with_db(engine)(lambda event, context, conn: None)
    with pytest.raises(TypeError, match="is a generator"):
        with_db(engine)(rows)


def test_result_that_would_run_after_the_request_is_refused(run: Run, engine: AsyncEngine) -> None:
    """A handler that returns something to be awaited has not done its work."""

    @with_db(engine)
    async def handler(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> Any:
        return answer(event, context, conn)

    with pytest.raises(TypeError, match="after its request has ended"):
        run(handler(EVENT, None))


def test_sync_handler_under_a_running_loop(run: Run, server: Any) -> None:
    """A handler that blocks works inside a loop, which it blocks."""
    engine = Engine(conninfo=server.dsn)
    handler = with_db(engine)(lambda event, context, conn: conn.execute("select 1").fetchone())

    async def main() -> Any:
        return handler(EVENT, None)

    assert run(main()) == (1,)
    engine.close()


def test_handler_inside_a_handler_joins_it(run: Run, engine: AsyncEngine) -> None:
    """A decorated function awaited by another shares its transaction, also from a task."""
    inner = with_db(engine)(answer)

    @with_db(engine)
    async def outer(event: Any, context: Any, conn: psycopg.AsyncConnection[Any]) -> Any:
        return await asyncio.gather(inner(event, context), inner(event, context))

    assert run(outer(EVENT, None)) == [7, 7]
    assert (engine.stats.connects, engine.stats.commits) == (1, 1)
    assert run(pid_of(engine))
