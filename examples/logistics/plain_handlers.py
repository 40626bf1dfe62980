"""The same four functions as people write them without the kit: one connection, opened at first use and kept.

The demo runs them against `handlers`. Do not copy them: a full server, a restart, or a connection that died while the
container was frozen all become failed requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import psycopg

from . import gateway, service

connection: service.Conn | None = None


@contextmanager
def transaction() -> Iterator[service.Conn]:
    """Lend the container's connection for one transaction."""
    global connection
    if connection is None:
        connection = psycopg.connect(os.environ["DATABASE_URL"])
    with connection.transaction():
        yield connection


@gateway.proxy()
def list_sales(event: gateway.Event, context: object) -> dict[str, Any]:
    """GET /sales?limit=50&after=CURSOR: the newest sales first."""
    with transaction() as conn:
        size = gateway.limit(event)
        rows = service.list_sales(conn, limit=size, after=gateway.sales_cursor(event))
        return gateway.page(rows, size, "sold_at", "id")


@gateway.proxy()
def list_inventory(event: gateway.Event, context: object) -> dict[str, Any]:
    """GET /inventory?limit=50&after=CURSOR: what is in stock, by warehouse and product."""
    with transaction() as conn:
        size = gateway.limit(event)
        rows = service.list_inventory(conn, limit=size, after=gateway.inventory_cursor(event))
        return gateway.page(rows, size, "warehouse_id", "product_id")


@gateway.proxy(HTTPStatus.CREATED)
def create_fulfilment(event: gateway.Event, context: object) -> service.Fulfilment:
    """POST /fulfilments: take the items out of the warehouse's stock and record the fulfilment, or neither."""
    with transaction() as conn:
        warehouse_id, quantities = gateway.order(event)
        return service.create_fulfilment(conn, warehouse_id, quantities)


@gateway.proxy()
def get_fulfilment(event: gateway.Event, context: object) -> service.Fulfilment:
    """GET /fulfilments/{id}: one fulfilment with its items."""
    with transaction() as conn:
        return service.get_fulfilment(conn, gateway.path_id(event))
