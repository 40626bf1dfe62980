"""How long a web request may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from serverless_pg_kit import Engine, SettingsError
from serverless_pg_kit.aws_lambda import context_budget
from serverless_pg_kit.settings import is_number

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Deadline = float | Callable[["WSGIEnvironment"], float | None] | None
"""Seconds; or what returns them for the WSGI environment of a request, ``None`` if it does not know."""

CONTEXT_KEYS = ("apig_wsgi.context", "awsgi.context", "serverless.context", "lambda.context")
"""Where apig-wsgi, aws-wsgi, serverless-wsgi and Zappa put the Lambda context."""

ALLOWED = "a number of seconds above 0, a callable that returns one, or None"


def checked(value: Any) -> Deadline:
    """Return `value`. Raises `SettingsError` if it is no `Deadline`."""
    if value is None or callable(value) or ((is_number(value) or value == float("inf")) and value > 0):
        return cast(Deadline, value)
    raise SettingsError(f"deadline={value!r} is not allowed: {ALLOWED}")


def seconds_of(deadline: Deadline, environ: WSGIEnvironment, engine: Engine) -> float | None:
    """Return the seconds that the request in `environ` may take, ``None`` for any time.

    The time that a Lambda invocation has left is a limit even to a longer `deadline`, unless that is infinite.
    """
    limit = deadline(environ) if callable(deadline) else deadline
    if limit == float("inf"):
        return None
    contexts = tuple(environ[key] for key in CONTEXT_KEYS if key in environ)
    left = context_budget(contexts, engine)
    return limit if left is None or (limit is not None and limit < left) else left
