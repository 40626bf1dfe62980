"""What the answer of a function or a route says about its transaction. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping

from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.decisions.ending import check_statuses
from serverless_pg_kit.handlers import status_of
from serverless_pg_kit.scope_base import WorkBase

AGENT_STATES = {"FAILURE": 500, "REPROMPT": 400}
"""What an agent's function answers in place of a status: it failed, or the agent has to ask in another way."""


def check_options(engine: object, kind: type[EngineBase], rollback_on: object, advice: str) -> None:
    """Raise ``TypeError`` for an `engine` that is not of `kind` (with `advice`), or a `rollback_on` of no statuses."""
    if engine is not None and not isinstance(engine, kind):
        raise TypeError(f"engine must be of the class {kind.__name__}, not {type(engine).__name__}: {advice}")
    check_statuses(rollback_on)


def tell(scope: WorkBase, status: int, rollback_on: Container[int]) -> None:
    """Let `scope` end as an answer with `status` asks."""
    scope.respond(status, rollback=status in rollback_on)


def route_status(answer: object) -> int:
    """Return the status of what a chain of middlewares came to: a ``Response``, a ``ServiceError``, or, from a
    middleware that cut the chain short, ``(body, status)``; 200 for anything else, as the resolvers have it."""
    if isinstance(answer, tuple) and len(answer) == 2:
        return whole(answer[1])
    return whole(getattr(answer, "status_code", 200))


def whole(status: object) -> int:
    """Return `status` as a number; it may be an ``HTTPStatus``, text, or nonsense (200)."""
    return status_of({"statusCode": status})


def function_status(result: object) -> int:
    """Return the status of what a Lambda function returned: a proxy response, or the answer to a Bedrock agent."""
    response = result.get("response") if isinstance(result, Mapping) else None
    if not isinstance(response, Mapping):
        return status_of(result)
    tool = response.get("functionResponse")
    if isinstance(tool, Mapping):
        return AGENT_STATES.get(str(tool.get("responseState")), 200)
    return whole(response.get("httpStatusCode"))
