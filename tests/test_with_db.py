"""The decorator: what it wraps, what it injects, and how results and exceptions end the request."""

from __future__ import annotations

import functools
import time
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from support import entries, kill

from serverless_pg_kit import Engine, TransactionFailed, with_db
from serverless_pg_kit.aws_lambda import default_engine

EVENT: dict[str, Any] = {"n": 7}


class Context:
    """What a Lambda handler gets, as far as the kit looks at it."""

    def __init__(self, milliseconds: float) -> None:
        self._milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> float:
        """Return the remaining time in milliseconds."""
        return self._milliseconds


@pytest.fixture
def shell() -> Any:
    """The sync one: async handlers have a suite of their own, in aio/."""
    return Engine


@pytest.fixture
def engine(make_engine: Any) -> Engine:
    """An engine on the server."""
    made: Engine = make_engine()
    return made


def answer(event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
    """A handler: return the event's number, having asked the server."""
    row = conn.execute("select %s::int", [event["n"]]).fetchone()
    return int(row[0]) if row else 0


class Service:
    """A class whose methods are handlers."""

    def method(self, event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
        """A handler."""
        return answer(event, context, conn)

    def __call__(self, event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
        return answer(event, context, conn)


def with_extra(extra: str, event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
    """A handler that needs an argument more."""
    assert extra == "extra"
    return answer(event, context, conn)


@pytest.mark.parametrize(
    "handler",
    [answer, Service().method, Service(), functools.partial(with_extra, "extra"), functools.partial(answer)],
    ids=["function", "bound method", "callable object", "partial with argument", "partial"],
)
def test_every_kind_of_handler_is_wrapped(engine: Engine, handler: Any) -> None:
    """The connection reaches functions, methods, callable objects and partials alike."""
    assert with_db(engine)(handler)(EVENT, None) == 7


def test_method_is_wrapped_in_its_class(engine: Engine) -> None:
    """Decorated in the class body, a method still gets its self."""

    class Decorated:
        factor = 2

        @with_db(engine)
        def handler(self, event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
            return self.factor * answer(event, context, conn)

    assert Decorated().handler(EVENT, None) == 14


def test_bare_decorator_uses_one_engine_of_the_environment(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """``@with_db`` alone works with DATABASE_URL, and every handler of the process shares the engine."""
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    monkeypatch.setattr("serverless_pg_kit.aws_lambda._defaults", {})

    @with_db
    def bare(event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
        return conn.info.backend_pid

    @with_db()
    def called(event: Any, context: Any, conn: psycopg.Connection[Any]) -> int:
        return conn.info.backend_pid

    try:
        assert bare(EVENT, None) == called(EVENT, None)
    finally:
        default_engine().close()


def test_metadata_is_kept(engine: Engine) -> None:
    """Tools that look at a handler's name and documentation find them."""
    decorated = with_db(engine)(answer)
    assert (decorated.__name__, decorated.__doc__) == (answer.__name__, answer.__doc__)


def test_without_the_parameter_nothing_is_acquired(engine: Engine) -> None:
    """A handler without the parameter costs no connection until it touches the engine's."""

    @with_db(engine)
    def handler(event: Any, context: Any) -> Any:
        return engine.connection.execute("select 1").fetchone() if event.get("n") else None

    assert handler({}, None) is None
    assert engine.stats.connects == 0
    assert handler(EVENT, None) == (1,)
    assert (engine.stats.connects, engine.stats.commits) == (1, 1)


def test_renamed_and_stacked(engine: Engine, make_engine: Any) -> None:
    """Two databases are two engines and two names."""
    other = make_engine()

    @with_db(engine, inject="one")
    @with_db(other, inject="two")
    def handler(event: Any, context: Any, one: psycopg.Connection[Any], two: psycopg.Connection[Any]) -> bool:
        return one.info.backend_pid != two.info.backend_pid

    assert handler(EVENT, None)


def test_connection_passed_by_the_caller_is_used(engine: Engine) -> None:
    """A unit test may hand its own connection to a decorated handler, by name or by position."""
    with psycopg.connect(engine.settings.conninfo) as mine:
        handler = with_db(engine)(lambda event, context, conn: conn is mine)
        assert handler(EVENT, None, conn=mine)
        assert handler(EVENT, None, mine)
    assert engine.stats.connects == 0


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (None, True),
        ("text", True),
        ({"statusCode": 200}, True),
        ({"statusCode": 404}, True),
        ({"statusCode": 500}, False),
        ({"statusCode": "503"}, False),
        ({"statusCode": None}, True),
        ({"statusCode": "odd"}, True),
        ({"other": 500}, True),
    ],
)
def test_result_decides(engine: Engine, superuser: Any, ledger: str, result: Any, kept: bool) -> None:
    """A proxy-style 5xx rolls back without an exception, everything else commits."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        conn.execute("insert into ledger values (1)")
        return result

    assert handler(EVENT, None) == result
    assert entries(superuser) == ([1] if kept else [])


def test_exception_rolls_back(engine: Engine, superuser: Any, ledger: str) -> None:
    """The handler's own exception goes through."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (1)")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        handler(EVENT, None)
    assert entries(superuser) == []


@pytest.mark.parametrize("status", [400, 409, 500])
def test_failed_transaction_with_an_error_answer_is_silent(engine: Engine, status: int) -> None:
    """A handler that caught the database error and says so in its answer is believed."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")
        return {"statusCode": status}

    assert handler(EVENT, None) == {"statusCode": status}
    assert engine.stats.rollbacks == 1


@pytest.mark.parametrize("result", [None, {"statusCode": 200}])
def test_failed_transaction_with_a_good_answer_is_told(engine: Engine, result: Any) -> None:
    """An answer that claims success after a failed transaction would be a lie."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("select 1/0")
        return result

    with pytest.raises(TransactionFailed):
        handler(EVENT, None)


def test_failing_clean_up_does_not_replace_the_handlers_exception(engine: Engine, superuser: Any) -> None:
    """What the handler raised arrives even if its connection is dead by then."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        kill(superuser, conn.info.backend_pid)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        handler(EVENT, None)
    assert with_db(engine)(answer)(EVENT, None) == 7


@pytest.mark.parametrize("by_name", [False, True])
def test_remaining_time_bounds_the_queries(engine: Engine, by_name: bool) -> None:
    """A query that would outlive the invocation is cancelled while the handler can still answer."""

    @with_db(engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        try:
            conn.execute("select pg_sleep(30)")
        except psycopg.errors.QueryCanceled:
            return {"statusCode": 503}

    started = time.monotonic()
    arguments = {"event": EVENT, "context": Context(900)} if by_name else {}
    result = handler(**arguments) if by_name else handler(EVENT, Context(900))
    assert result == {"statusCode": 503}
    assert time.monotonic() - started < 0.9


@pytest.mark.parametrize(
    "context",
    [
        Mock(get_remaining_time_in_millis=lambda: 30_000),
        SimpleNamespace(lambda_context=Context(30_000)),
    ],
    ids=["a mock that has every attribute", "the context of a durable function"],
)
def test_remaining_time_is_found(engine: Engine, context: Any) -> None:
    """The time that is left is found in what tests take for a context, and in a context that holds Lambda's."""
    shown = with_db(engine)(lambda event, context, conn: conn.execute("show statement_timeout").fetchone())
    assert shown(EVENT, context) != ("0",)


@pytest.mark.parametrize("context", [None, object(), Context(0), Context(-1)])
def test_unknown_remaining_time_sets_no_limit(engine: Engine, context: Any) -> None:
    """0 or less means unknown, as does a context without the method."""
    shown = with_db(engine)(lambda event, context, conn: conn.execute("show statement_timeout").fetchone())
    assert shown(EVENT, context) == ("0",)


def test_options_hold_for_the_request(engine: Engine) -> None:
    """Deadline, isolation level and read-only can be given at the decorator."""

    @with_db(engine, deadline=30, isolation_level=psycopg.IsolationLevel.REPEATABLE_READ, read_only=True)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        return conn.execute(
            """select current_setting('transaction_isolation'), current_setting('transaction_read_only'),
                      current_setting('statement_timeout')::interval > '29 s'"""
        ).fetchone()

    assert handler(EVENT, Context(100)) == ("repeatable read", "on", True)


def test_handler_inside_a_handler_joins_it(engine: Engine) -> None:
    """A decorated function called by another shares its transaction."""
    inner = with_db(engine)(lambda event, context, conn: conn)

    @with_db(engine)
    def outer(event: Any, context: Any, conn: psycopg.Connection[Any]) -> bool:
        return inner(event, context) is conn

    assert outer(EVENT, None)


def test_handler_that_does_not_join(engine: Engine, superuser: Any, ledger: str) -> None:
    """With `join=False` a decorated function commits or fails on its own, wherever it is called from."""

    @with_db(engine, join=False)
    def inner(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (%s)", [event["n"]])
        if event["n"] > 7:
            raise LookupError("mine")

    @with_db(engine)
    def outer(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (1)")
        inner(event, context)
        with pytest.raises(LookupError, match="mine"):
            inner({"n": 8}, context)

    outer(EVENT, None)
    assert entries(superuser) == [1, 7]


def test_bound_connection_of_a_partial_is_kept(engine: Engine) -> None:
    """Who binds the parameter in a partial has decided what it is."""
    handler = with_db(engine)(functools.partial(lambda event, context, conn: conn, conn="mine"))
    assert handler(EVENT, None) == "mine"
    assert engine.stats.connects == 0


def test_wrapper_that_takes_less_than_it_shows_gets_no_more(engine: Engine) -> None:
    """A foreign decorator that supplies the connection itself is not handed another one."""

    @functools.wraps(answer)
    def wrapper(event: Any, context: Any) -> str:
        return "narrow"

    assert with_db(engine)(wrapper)(EVENT, None) == "narrow"


@pytest.mark.parametrize("context", [Context("soon"), Context(None)])  # type: ignore[arg-type]
def test_odd_context_is_no_context(engine: Engine, context: Any) -> None:
    """A mock instead of a context does not fail the handler."""
    assert with_db(engine)(answer)(EVENT, context) == 7


@pytest.mark.parametrize("late", [lambda event, context, conn: (x for x in [1]), lambda event, context, conn: later()])
def test_result_that_would_run_after_the_request_is_refused(engine: Engine, late: Any) -> None:
    """A generator or coroutine returned by a handler would use a connection that serves somebody else."""
    with pytest.raises(TypeError, match="after its request has ended"):
        with_db(engine)(late)(EVENT, None)


async def later() -> None:
    """Something that is awaited too late."""


def test_what_is_no_handler_is_refused(engine: Engine) -> None:
    """Mistakes are told when decorating, not in the first invocation."""

    async def asynchronous(event: Any, context: Any) -> None:
        """Not to be run by a blocking engine."""

    def positional(event: Any, context: Any, conn: Any, /) -> None:
        """Nothing can be injected by name here."""

    with pytest.raises(TypeError, match="is async"):
        with_db(engine)(asynchronous)
    with pytest.raises(TypeError, match="positional-only"):
        with_db(engine)(positional)

    def rows(event: Any, context: Any, conn: Any) -> Any:
        yield conn

    with pytest.raises(TypeError, match="is a generator"):
        with_db(engine)(rows)
    with pytest.raises(TypeError, match="above @with_db"):
        with_db(engine)(staticmethod(answer))
    with pytest.raises(TypeError, match="not classes"):
        with_db(engine)(dict)
    with pytest.raises(TypeError, match=r"not str$"):
        with_db("postgresql://u:secret@h")  # type: ignore[call-overload]
