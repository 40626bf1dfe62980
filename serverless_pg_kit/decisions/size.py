"""How many processes like this one share a container, as far as its environment tells, and whether that is too much."""

from __future__ import annotations

from collections.abc import Mapping

MANAGED_INSTANCES = "AWS_LAMBDA_MAX_CONCURRENCY"
FUNCTIONS_FRAMEWORK = "FUNCTION_TARGET"

SAID_BY = (MANAGED_INSTANCES, "WEB_CONCURRENCY")
"""Variables with a number of processes: of Lambda Managed Instances; of gunicorn, uvicorn and who starts them."""


def known_processes(environ: Mapping[str, str]) -> int | None:
    """Return how many processes `environ` tells of; ``None`` if of none.

    ``WORKERS`` is a word that anybody may use, so it counts only where Google's functions framework runs.
    """
    names = (*SAID_BY, "WORKERS") if FUNCTIONS_FRAMEWORK in environ else SAID_BY
    numbers = (environ.get(name, "").strip() for name in names)
    return next((int(number) for number in numbers if number.isdecimal() and int(number)), None)


def is_oversized(processes: int, max_size: int, ceiling: int) -> bool:
    """Tell whether that many processes, with `max_size` connections each, could exceed the `ceiling` of the server."""
    return processes * max_size > ceiling
