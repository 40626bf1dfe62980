"""One request of an engine around the rest of a resolver's chain: how it begins, where it is kept, what it comes to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from aws_lambda_powertools.event_handler.exceptions import ServiceError
from psycopg import IsolationLevel

from serverless_pg_kit.aws_lambda import context_budget

if TYPE_CHECKING:
    from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver

    NextMiddleware = Callable[[ApiGatewayResolver], Any]

MISSING = object()


class Options(NamedTuple):
    """What a middleware was made with."""

    engine: Any
    key: str
    rollback_on: Container[int]
    deadline: float | None
    isolation_level: IsolationLevel | None
    read_only: bool | None
    conninfo: Any

    def scope(self, app: ApiGatewayResolver, engine: Any) -> Any:
        """Return the request that begins now, on `engine`."""
        deadline = context_budget((app.lambda_context,), engine) if self.deadline is None else self.deadline
        conninfo = self.conninfo(app) if callable(self.conninfo) else self.conninfo
        how = {"isolation_level": self.isolation_level, "read_only": self.read_only, "conninfo": conninfo}
        return engine.scope(deadline=deadline, **how)


@contextmanager
def lent(context: MutableMapping[str, Any], key: str, scope: object) -> Iterator[None]:
    """Put `scope` into the resolver's context for a while. Powertools before 3.37 keeps what is in there after an
    exception, for the next request to find."""
    before = context.get(key, MISSING)
    context[key] = scope
    try:
        yield
    finally:
        if before is MISSING:
            context.pop(key, None)
        else:
            context[key] = before


def answer_of(app: ApiGatewayResolver, next_middleware: NextMiddleware) -> Any:
    """Return what the rest of the chain answers; a ``ServiceError`` that it raises is one."""
    try:
        return next_middleware(app)
    except ServiceError as error:
        return error


async def async_answer_of(app: ApiGatewayResolver, next_middleware: Callable[..., Awaitable[Any]]) -> Any:
    """Do the same for a chain that has to be awaited."""
    try:
        return await next_middleware(app)
    except ServiceError as error:
        return error


def handed_on(answer: Any) -> Any:
    """Return `answer`, or raise it if it is an error: its request has ended by now."""
    if isinstance(answer, ServiceError):
        raise answer
    return answer
