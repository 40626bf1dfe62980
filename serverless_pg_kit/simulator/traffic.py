"""What arrives and when. The same seed gives the same arrivals, whoever answers them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from random import Random
from typing import Any

# Keep in step with examples/logistics/data.sql.
WAREHOUSES = 4
PRODUCTS = 50
FULFILMENTS = 200

SPREAD = 0.03  # seconds over which a volley that comes "at once" is spread


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request for a handler of a function (a deployment); `at` is in seconds from the start of its phase."""

    at: float
    function: str
    handler: str
    event: dict[str, Any]


def volleys(rng: Random, function: str, size: int, count: int, beat: float) -> list[Arrival]:
    """Return `count` volleys of `size` requests, one every `beat` seconds.

    Volleys, because the number of containers follows the number of requests at the same time, and these handlers
    take milliseconds: spread out evenly, a few containers would do.
    """
    moments = [number * beat + rng.uniform(0, SPREAD) for number in range(count) for _ in range(size)]
    return [Arrival(moment, function, *_request(rng)) for moment in sorted(moments)]


def _request(rng: Random) -> tuple[str, dict[str, Any]]:
    """A shop's day: mostly reading, one request in five writes."""
    makers = (_list_sales, _list_inventory, _create_fulfilment, _get_fulfilment)
    (maker,) = rng.choices(makers, weights=(40, 30, 20, 10))
    return maker.__name__[1:], {"version": "2.0", **maker(rng)}


def _list_sales(rng: Random) -> dict[str, Any]:
    return {"queryStringParameters": {"limit": str(rng.randint(5, 20))}}


def _list_inventory(rng: Random) -> dict[str, Any]:
    return {"queryStringParameters": {"limit": str(rng.randint(5, 20))}}


def _create_fulfilment(rng: Random) -> dict[str, Any]:
    products = rng.sample(range(1, PRODUCTS + 1), rng.randint(1, 3))
    items = [{"product_id": product, "quantity": rng.randint(1, 3)} for product in products]
    return {"body": json.dumps({"warehouse_id": rng.randint(1, WAREHOUSES), "items": items})}


def _get_fulfilment(rng: Random) -> dict[str, Any]:
    return {"pathParameters": {"id": str(rng.randint(1, FULFILMENTS))}}
