"""The kit as an internal Lambda extension that wants no events: Lambda sends SIGTERM only to functions with extensions.

Two calls of the Extensions API, both during initialisation: register, and say that this extension is ready. The second
one is answered when there is an event, so never; nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from http.client import HTTPConnection

NAME = "serverless-pg-kit"
"""Under this name Lambda logs the extension."""

ADDRESS = "AWS_LAMBDA_RUNTIME_API"
WORKERS = "AWS_LAMBDA_MAX_CONCURRENCY"
"""Set on Managed Instances, where each environment has several processes: there is no freeze, and one name is one
extension."""

PATIENCE = 1.0
"""Seconds that the API may take. It is a neighbour of this process."""

_line: HTTPConnection | None = None  # open for as long as this extension stands
_has_tried = False


class NotRegistered(Exception):
    """The Extensions API did not accept the extension."""


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Tell whether this process runs in a Lambda function that has to register and has not tried to."""
    return ADDRESS in environ and WORKERS not in environ and not _has_tried


def register(address: str) -> None:
    """Register with the API at `address` and report as ready; Lambda would wait for that before the first invocation.

    Raises `NotRegistered`, ``OSError`` or ``http.client.HTTPException``, all within `PATIENCE` for each step.
    """
    global _line, _has_tried
    from http.client import HTTPConnection  # for those only who want it

    _has_tried = True
    line = HTTPConnection(address, timeout=PATIENCE)
    try:
        identifier = introduce(line)
        line.request("GET", "/2020-01-01/extension/event/next", headers={"Lambda-Extension-Identifier": identifier})
    except BaseException:
        line.close()
        raise
    _line = line


def introduce(line: HTTPConnection) -> str:
    """Register over `line` and return the identifier that the API gives. Raises what `register` raises."""
    headers = {"Lambda-Extension-Name": NAME, "Content-Type": "application/json"}
    line.request("POST", "/2020-01-01/extension/register", '{"events": []}', headers)
    answer = line.getresponse()
    said = answer.read().decode(errors="replace").strip()[:200]
    identifier = answer.getheader("Lambda-Extension-Identifier")
    if answer.status != 200 or not identifier:
        raise NotRegistered(f"status {answer.status}: {said}")
    return identifier
