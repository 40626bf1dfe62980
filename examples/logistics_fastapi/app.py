"""The service over HTTP: what `logistics.handlers` has as four functions are four endpoints here."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from logistics import gateway
from logistics.service import Refusal
from serverless_pg_kit import AsyncEngine
from serverless_pg_kit_asgi import ServerlessPgMiddleware, connection

from . import service

engine = AsyncEngine()  # reads DATABASE_URL; the first request connects
app = FastAPI(title="Logistics")
app.add_middleware(ServerlessPgMiddleware, engine=engine)

Conn = Annotated[service.Conn, Depends(connection)]


class PlainJson(JSONResponse):
    """Money and times as the other forms of the example write them."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, default=gateway.plain).encode()


async def event(request: Request) -> gateway.Event:
    """Return the part of the request that the example's other forms get in an event: its query, path and body."""
    body = (await request.body()).decode(errors="replace")
    return {"queryStringParameters": request.query_params, "pathParameters": request.path_params, "body": body}


Event = Annotated[gateway.Event, Depends(event)]


@app.get("/sales")
async def list_sales(event: Event, conn: Conn) -> Response:
    """GET /sales?limit=50&after=CURSOR: the newest sales first."""
    size = gateway.limit(event)
    rows = await service.list_sales(conn, limit=size, after=gateway.sales_cursor(event))
    return PlainJson(gateway.page(rows, size, "sold_at", "id"))


@app.get("/inventory")
async def list_inventory(event: Event, conn: Conn) -> Response:
    """GET /inventory?limit=50&after=CURSOR: what is in stock, by warehouse and product."""
    size = gateway.limit(event)
    rows = await service.list_inventory(conn, limit=size, after=gateway.inventory_cursor(event))
    return PlainJson(gateway.page(rows, size, "warehouse_id", "product_id"))


@app.post("/fulfilments")
async def create_fulfilment(event: Event, conn: Conn) -> Response:
    """POST /fulfilments: take the items out of the warehouse's stock and record the fulfilment, or neither."""
    warehouse_id, quantities = gateway.order(event)
    return PlainJson(await service.create_fulfilment(conn, warehouse_id, quantities), HTTPStatus.CREATED)


@app.get("/fulfilments/{id}")
async def get_fulfilment(event: Event, conn: Conn) -> Response:
    """GET /fulfilments/{id}: one fulfilment with its items."""
    return PlainJson(await service.get_fulfilment(conn, gateway.path_id(event)))


@app.exception_handler(gateway.BadRequest)
async def bad_request(request: Request, error: Exception) -> Response:
    """Answer what cannot be understood."""
    return PlainJson({"error": str(error)}, HTTPStatus.BAD_REQUEST)


@app.exception_handler(Refusal)
async def refusal(request: Request, error: Refusal) -> Response:
    """Answer what cannot be met as it stands."""
    return PlainJson({"error": str(error)}, gateway.STATUS[type(error)])
