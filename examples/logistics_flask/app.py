"""The service over HTTP: what `logistics.handlers` has as four functions are four views here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import Flask, request
from flask.json.provider import DefaultJSONProvider

from logistics import gateway, service
from serverless_pg_kit_flask import ServerlessPg

pg = ServerlessPg()


class PlainJson(DefaultJSONProvider):
    """Money and times as the other forms of the example write them."""

    default = staticmethod(gateway.plain)


def create_app(**config: Any) -> Flask:
    """Return the application; `config` goes into its configuration, such as ``SERVERLESS_PG_MAX_SIZE=5``."""
    app = Flask(__name__)
    app.json = PlainJson(app)
    app.config.update(config)
    pg.init_app(app)
    app.add_url_rule("/sales", view_func=list_sales)
    app.add_url_rule("/inventory", view_func=list_inventory)
    app.add_url_rule("/fulfilments", view_func=create_fulfilment, methods=["POST"])
    app.add_url_rule("/fulfilments/<id_>", view_func=get_fulfilment)
    app.register_error_handler(gateway.BadRequest, bad_request)
    app.register_error_handler(service.Refusal, refusal)
    return app


def list_sales() -> dict[str, Any]:
    """GET /sales?limit=50&after=CURSOR: the newest sales first."""
    size = gateway.limit(event())
    rows = service.list_sales(pg.connection, limit=size, after=gateway.sales_cursor(event()))
    return gateway.page(rows, size, "sold_at", "id")


def list_inventory() -> dict[str, Any]:
    """GET /inventory?limit=50&after=CURSOR: what is in stock, by warehouse and product."""
    size = gateway.limit(event())
    rows = service.list_inventory(pg.connection, limit=size, after=gateway.inventory_cursor(event()))
    return gateway.page(rows, size, "warehouse_id", "product_id")


def create_fulfilment() -> tuple[service.Fulfilment, HTTPStatus]:
    """POST /fulfilments: take the items out of the warehouse's stock and record the fulfilment, or neither."""
    warehouse_id, quantities = gateway.order(event())
    return service.create_fulfilment(pg.connection, warehouse_id, quantities), HTTPStatus.CREATED


def get_fulfilment(id_: str) -> service.Fulfilment:
    """GET /fulfilments/{id}: one fulfilment with its items."""
    return service.get_fulfilment(pg.connection, gateway.path_id({"pathParameters": {"id": id_}}))


def event() -> gateway.Event:
    """Return the part of the request that the example's other forms get in an event: its query and its body."""
    return {"queryStringParameters": request.args, "body": request.get_data().decode(errors="replace")}


def bad_request(error: gateway.BadRequest) -> tuple[dict[str, str], HTTPStatus]:
    """Answer what cannot be understood."""
    return {"error": str(error)}, HTTPStatus.BAD_REQUEST


def refusal(error: service.Refusal) -> tuple[dict[str, str], HTTPStatus]:
    """Answer what cannot be met as it stands."""
    return {"error": str(error)}, gateway.STATUS[type(error)]
