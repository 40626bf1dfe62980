"""Code outside HTTP that uses the ORM: a Lambda handler, a batch of a queue, a job."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar, overload

from django.db import DEFAULT_DB_ALIAS, connections, reset_queries, transaction
from psycopg.pq import TransactionStatus

from serverless_pg_kit import TransactionFailed
from serverless_pg_kit.handlers import Injection, is_async, plan_injection, refuse_unfinished, status_of
from serverless_pg_kit_django.engines import budget
from serverless_pg_kit_django.raw import connection_of
from serverless_pg_kit_django.time_left import set_time_left

R = TypeVar("R")

_is_within: ContextVar[bool] = ContextVar("serverless_pg_kit_django.is_within", default=False)


@contextmanager
def db_request(deadline: float | None = None) -> Iterator[None]:
    """Let a block be to the database what a request over HTTP is: connections go back at its end, checked at the next
    use, and the log of queries begins anew.

    `deadline` is in seconds from now, for connections acquired inside; ``None``: no limit. A block inside a block, or
    inside a test's transaction, leaves connections that are in a transaction alone; the outer deadline holds.
    """
    if _is_within.get():
        yield
        return
    reset_queries()
    give_back()
    _is_within.set(True)
    set_time_left(deadline)
    try:
        yield
    finally:
        set_time_left(None)
        _is_within.set(False)
        give_back()


def give_back() -> None:
    """Do what Django does at the end of a request, with all connections of this thread that are in no transaction."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


@overload
def with_db(handler: Callable[..., R], /) -> Callable[..., R]: ...
@overload
def with_db(
    *, using: str = DEFAULT_DB_ALIAS, inject: str = "conn", deadline: float | None = None, atomic: bool = True
) -> Callable[[Callable[..., R]], Callable[..., R]]: ...
def with_db(
    handler: Any = None,
    /,
    *,
    using: str = DEFAULT_DB_ALIAS,
    inject: str = "conn",
    deadline: float | None = None,
    atomic: bool = True,
) -> Any:
    """Run a handler that uses the ORM as one request, with one connection, one transaction and one deadline.

    It commits on success; an exception, or a dictionary with a ``statusCode`` of 500 or more, rolls back. If the
    handler has a parameter `inject`, it is given the psycopg connection that the ORM uses for the database `using`.
    With ``atomic=False`` there is no transaction around it: Django's autocommit, as in a view. `deadline` is in
    seconds; ``None`` takes the remaining time of the Lambda context among the arguments, less ``deadline_margin``.

    The decorated handler raises ``django.db.OperationalError`` where there is no connection to be had, and
    `TransactionFailed` if it believes in a success although its transaction has failed. Raises ``TypeError`` when
    decorating what is no handler, or async: Django's transactions are not.
    """
    decorate = functools.partial(_decorate, using=using, inject=inject, deadline=deadline, atomic=atomic)
    return decorate if handler is None else decorate(handler)


def _decorate(
    handler: Callable[..., Any], using: str, inject: str, deadline: float | None, atomic: bool
) -> Callable[..., Any]:
    plan = plan_injection(handler, inject)
    if is_async(handler):
        raise TypeError(f"{handler!r} is async: decorate a plain function, and call it with sync_to_async()")

    @functools.wraps(handler)
    def run(*args: Any, **kwargs: Any) -> Any:
        arguments = (*args, *kwargs.values())
        seconds = budget(arguments, using) if deadline is None else deadline
        around: AbstractContextManager[None] = transaction.atomic(using) if atomic else nullcontext()
        with db_request(seconds), around:
            result = handler(*args, **{**kwargs, **injected(plan, using, args, kwargs)})
            refuse_unfinished(result)
            if atomic:
                decide(using, status_of(result))
            return result

    return run


def injected(plan: Injection, using: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the connection under its parameter's name, if the call is to be given one."""
    return {plan.name: connection_of(using)} if plan.is_wanted(args, kwargs) else {}


def decide(using: str, status: int) -> None:
    """Let the transaction around a handler that answered with `status` be rolled back, if it is not to be committed.

    Raises `TransactionFailed` if it has failed and the status does not say so.
    """
    info = getattr(connection_of(using), "info", None)  # no PostgreSQL, as in some tests, fails at once
    failed = info is not None and info.transaction_status == TransactionStatus.INERROR
    if failed and status < 400:
        raise TransactionFailed("the transaction had failed, but the handler returned a success: nothing is committed")
    if failed or status >= 500:
        transaction.set_rollback(True, using)
