"""What the tests of the Powertools adapter need: events for each kind of resolver, and a Lambda context."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

EVENTS = Path(__file__).parent / "events"


class Context:
    """An AWS Lambda context with `milliseconds` left."""

    function_name = "orders"
    function_version = "$LATEST"
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:orders"
    memory_limit_in_mb = "256"
    aws_request_id = "6f1e0a5e-43a2-4dd1-bd9c-6cb9b9b2a5a1"
    log_group_name = "/aws/lambda/orders"
    log_stream_name = "2026/11/21/[$LATEST]0123456789abcdef"
    identity = None
    client_context = None
    tenant_id = None

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> float:
        """Return what was given."""
        return self.milliseconds


@functools.cache
def stored(name: str) -> Any:
    """Return the event in the file `name`."""
    return json.loads((EVENTS / f"{name}.json").read_text(encoding="utf-8"))


def event_of(
    name: str, method: str = "GET", path: str = "/orders/7", body: Any = None, query: dict[str, str] | None = None
) -> Any:
    """Return the event `name`, asking for `path` by `method`, where its kind has that; everything else as AWS sends it.

    `body` is sent as JSON. `query` is for the REST API only.
    """
    event = copy.deepcopy(stored(name))
    places = {
        "api_gateway_v1": {"path": path, "httpMethod": method},
        "alb": {"path": path, "httpMethod": method},
        "vpc_lattice_v1": {"raw_path": path, "method": method},
        "vpc_lattice_v2": {"path": path, "method": method},
        "bedrock_agent": {"apiPath": path, "httpMethod": method},
    }
    event.update(places.get(name, {"rawPath": path}))
    if name == "api_gateway_v1":
        event["queryStringParameters"] = query
        event["multiValueQueryStringParameters"] = {key: [value] for key, value in (query or {}).items()} or None
        event["requestContext"].update(path=f"/{event['requestContext']['stage']}{path}", httpMethod=method)
    if name in ("api_gateway_v2", "function_url"):
        event["requestContext"]["http"].update(path=path, method=method)
    if name != "bedrock_agent":
        event["body"] = None if body is None else json.dumps(body)
        event["is_base64_encoded" if name == "vpc_lattice_v1" else "isBase64Encoded"] = False
    return event


def status_of(answer: Any) -> int:
    """Return the status of a resolver's answer."""
    if "response" in answer:
        return int(answer["response"]["httpStatusCode"])
    return int(answer["statusCode"])
