"""Four AWS Lambda functions over the service. Each gets `conn` inside a transaction that the kit ends.

A success and a 4xx commit, which is safe because the service refuses before it writes; an exception rolls back.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from serverless_pg_kit import Engine, with_db

from . import gateway, service

engine = Engine()  # reads DATABASE_URL; the first request connects


@with_db(engine)
@gateway.proxy()
def list_sales(event: gateway.Event, context: object, conn: service.Conn) -> dict[str, Any]:
    """GET /sales?limit=50&after=CURSOR: the newest sales first."""
    size = gateway.limit(event)
    rows = service.list_sales(conn, limit=size, after=gateway.sales_cursor(event))
    return gateway.page(rows, size, "sold_at", "id")


@with_db(engine)
@gateway.proxy()
def list_inventory(event: gateway.Event, context: object, conn: service.Conn) -> dict[str, Any]:
    """GET /inventory?limit=50&after=CURSOR: what is in stock, by warehouse and product."""
    size = gateway.limit(event)
    rows = service.list_inventory(conn, limit=size, after=gateway.inventory_cursor(event))
    return gateway.page(rows, size, "warehouse_id", "product_id")


@with_db(engine)
@gateway.proxy(HTTPStatus.CREATED)
def create_fulfilment(event: gateway.Event, context: object, conn: service.Conn) -> service.Fulfilment:
    """POST /fulfilments: take the items out of the warehouse's stock and record the fulfilment, or neither."""
    warehouse_id, quantities = gateway.order(event)
    return service.create_fulfilment(conn, warehouse_id, quantities)


@with_db(engine)
@gateway.proxy()
def get_fulfilment(event: gateway.Event, context: object, conn: service.Conn) -> service.Fulfilment:
    """GET /fulfilments/{id}: one fulfilment with its items."""
    return service.get_fulfilment(conn, gateway.path_id(event))
