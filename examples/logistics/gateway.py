"""API Gateway events in, proxy responses out: the little HTTP that the handlers need.

Reads the payload of an HTTP API (version 2.0) and of a REST API (1.0); they differ in what may be missing or null.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from decimal import Decimal
from http import HTTPStatus
from typing import Any, ParamSpec

from . import service

Event = Mapping[str, Any]
Response = dict[str, Any]
P = ParamSpec("P")

MAX_PAGE = 200
MAX_ITEMS = 100
MAX_PIECES = 1_000_000
MAX_ID = 2**63 - 1

STATUS: dict[type[service.Refusal], HTTPStatus] = {
    service.NotFound: HTTPStatus.NOT_FOUND,
    service.UnknownReference: HTTPStatus.UNPROCESSABLE_ENTITY,
    service.OutOfStock: HTTPStatus.CONFLICT,
}


class BadRequest(Exception):
    """The request cannot be understood; the message says which part."""


def proxy(status: HTTPStatus = HTTPStatus.OK) -> Callable[[Callable[P, Any]], Callable[P, Response]]:
    """Decorate a handler that returns a body: it becomes a proxy response, `BadRequest` and `Refusal` a 4xx one."""

    def decorate(handler: Callable[P, Any]) -> Callable[P, Response]:
        @functools.wraps(handler)
        def proxied(*args: P.args, **kwargs: P.kwargs) -> Response:
            try:
                return _response(status, handler(*args, **kwargs))
            except BadRequest as error:
                return _response(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            except service.Refusal as error:
                return _response(STATUS[type(error)], {"error": str(error)})

        return proxied

    return decorate


def _response(status: HTTPStatus, body: Any) -> Response:
    return {
        "statusCode": status.value,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(body, default=plain),
    }


def plain(value: object) -> str:
    """Money as text, so that no client reads it into a binary fraction; times in UTC."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    raise TypeError(f"{type(value).__name__} has no place in a response")


def limit(event: Event) -> int:
    """Return the page size asked for (`?limit=`), 50 if none is."""
    return _whole(_query(event).get("limit", "50"), "limit", MAX_PAGE)


def path_id(event: Event) -> int:
    """Return the id in the path (`/fulfilments/{id}`)."""
    return _whole((event.get("pathParameters") or {}).get("id"), "id", MAX_ID)


def sales_cursor(event: Event) -> tuple[datetime, int] | None:
    """Return where the page of sales begins (`?after=`), ``None`` for the first page."""
    text = _query(event).get("after")
    if text is None:
        return None
    sold_at, id_ = _split_cursor(text)
    try:
        moment = datetime.fromisoformat(sold_at)
    except ValueError as error:
        raise BadRequest("after is not a cursor") from error
    if moment.tzinfo is None:
        raise BadRequest("after is not a cursor")
    return moment, _whole(id_, "after", MAX_ID)


def inventory_cursor(event: Event) -> tuple[int, int]:
    """Return where the page of the inventory begins (`?after=`), before everything for the first page."""
    text = _query(event).get("after")
    if text is None:
        return 0, 0
    warehouse, product = _split_cursor(text)
    return _whole(warehouse, "after", MAX_ID), _whole(product, "after", MAX_ID)


def page(rows: list[Any], size: int, *keys: str) -> dict[str, Any]:
    """Return the body of a page: the rows and, if it is full, the cursor (made of `keys`) to ask for the next one."""
    next_ = _join_cursor(rows[-1], keys) if len(rows) == size else None
    return {"items": rows, "next": next_}


def _join_cursor(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    text = "|".join(str(row[key]) for key in keys)
    # Encoded because clients treat it as opaque then, and because the + of a time zone turns into a space in a URL.
    return base64.urlsafe_b64encode(text.encode()).decode()


def _split_cursor(text: str) -> tuple[str, str]:
    try:
        first, second = base64.urlsafe_b64decode(text).decode().split("|")
    except ValueError as error:  # wrong alphabet, wrong encoding, wrong number of parts
        raise BadRequest("after is not a cursor") from error
    return first, second


def order(event: Event) -> tuple[int, dict[int, int]]:
    """Return the order in the body, `{"warehouse_id": 1, "items": [{"product_id": 2, "quantity": 3}]}`.

    The second value maps product ids to pieces.
    """
    body = _json_body(event)
    warehouse_id = _whole(_member(body, "warehouse_id"), "warehouse_id", MAX_ID)
    items = _member(body, "items")
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_ITEMS:
        raise BadRequest(f"items must be a list of 1 to {MAX_ITEMS} items")
    quantities: dict[int, int] = {}
    for item in items:
        product_id = _whole(_member(item, "product_id"), "product_id", MAX_ID)
        if product_id in quantities:
            raise BadRequest(f"product {product_id} is listed twice")
        quantities[product_id] = _whole(_member(item, "quantity"), "quantity", MAX_PIECES)
    return warehouse_id, quantities


def _query(event: Event) -> Mapping[str, str]:
    return event.get("queryStringParameters") or {}


def _json_body(event: Event) -> Any:
    text = event.get("body") or ""
    try:
        if event.get("isBase64Encoded"):
            text = base64.b64decode(text, validate=True).decode()
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "base64" if isinstance(error, binascii.Error) else "JSON"
        raise BadRequest(f"the body is not valid {kind}") from error


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise BadRequest(f"{name} is missing")
    return value[name]


def _whole(value: object, name: str, highest: int) -> int:
    """Return `value` as a whole number from 1 to `highest`: JSON's numbers and the text of a URL alike."""
    # The length bound comes first because int() refuses or crawls through thousands of digits.
    if isinstance(value, str) and len(value) <= 19 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= highest:
        raise BadRequest(f"{name} must be a whole number from 1 to {highest}")
    return value
