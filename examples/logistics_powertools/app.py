"""The REST API. Every route is one request of the engine, whose transaction ends as its answer says."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import psycopg
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response, content_types
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from aws_lambda_powertools.metrics import MetricUnit

from logistics import gateway, service
from serverless_pg_kit import CommitUnknown, close_on_sigterm
from serverless_pg_kit_powertools import LoggerListener, MetricsListener, PostgresMiddleware, trace_engine

from .database import make_engine
from .models import Fulfilment, Id, Inventory, Order, Sales

logger = Logger()
metrics = Metrics()
tracer = Tracer()

engine = make_engine()  # the first request connects
engine.add_listener(MetricsListener(metrics))
engine.add_listener(LoggerListener(logger))
trace_engine(engine, tracer)
close_on_sigterm(engine)

app = APIGatewayRestResolver(enable_validation=True)
app.enable_swagger(path="/openapi", title="Logistics", version="1")
app.use(middlewares=[PostgresMiddleware(engine)])

PageSize = Annotated[int, Query(ge=1, le=gateway.MAX_PAGE)]
Cursor = Annotated[str, Query(description="`next` of the page before")]


@app.get("/sales", summary="The newest sales first")
def list_sales(limit: PageSize = 50, after: Cursor = "") -> Sales:
    """Answer with a page of sales."""
    start = gateway.sales_cursor(cursor(after))
    rows = service.list_sales(engine.connection, limit=limit, after=start)
    return Sales.model_validate(gateway.page(rows, limit, "sold_at", "id"))


@app.get("/inventory", summary="What is in stock, by warehouse and product")
def list_inventory(limit: PageSize = 50, after: Cursor = "") -> Inventory:
    """Answer with a page of the inventory."""
    start = gateway.inventory_cursor(cursor(after))
    rows = service.list_inventory(engine.connection, limit=limit, after=start)
    return Inventory.model_validate(gateway.page(rows, limit, "warehouse_id", "product_id"))


@app.post("/fulfilments", summary="Take items out of a warehouse's stock and record it, or neither")
def create_fulfilment(order: Order) -> Response[Fulfilment]:
    """Answer with the fulfilment that was made."""
    made = service.create_fulfilment(engine.connection, order.warehouse_id, order.quantities)
    return Response(HTTPStatus.CREATED, content_types.APPLICATION_JSON, Fulfilment.model_validate(made))


@app.get("/fulfilments/<fulfilment_id>", summary="One fulfilment with its items")
def get_fulfilment(fulfilment_id: Annotated[Id, Path()]) -> Fulfilment:
    """Answer with a fulfilment."""
    return Fulfilment.model_validate(service.get_fulfilment(engine.connection, fulfilment_id))


@app.exception_handler(gateway.BadRequest)
def answer_bad_request(error: gateway.BadRequest) -> Response[Any]:
    """Say what could not be understood."""
    return refusal(HTTPStatus.BAD_REQUEST, str(error))


@app.exception_handler(service.Refusal)
def answer_refusal(error: service.Refusal) -> Response[Any]:
    """Say why the request cannot be met."""
    return refusal(gateway.STATUS[type(error)], str(error))


@app.exception_handler(psycopg.OperationalError)
def answer_later(error: psycopg.OperationalError) -> Response[Any]:
    """Answer in time: no connection was to be had, or a statement ran into the deadline. Nothing was kept."""
    logger.warning("the database did not serve this request", error=type(error).__name__)
    return refusal(HTTPStatus.SERVICE_UNAVAILABLE, "try again", {"retry-after": "1"})


@app.exception_handler(CommitUnknown)
def answer_unknown(error: CommitUnknown) -> Response[Any]:
    """Do not let clients repeat what may have been done."""
    logger.error("the answer to a COMMIT was lost")
    return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "this may have been done or not: look before you repeat it")


def refusal(status: HTTPStatus, reason: str, headers: dict[str, Any] | None = None) -> Response[Any]:
    """Return an answer that says `reason`."""
    return Response(status, content_types.APPLICATION_JSON, {"error": reason}, headers)


def cursor(after: str) -> gateway.Event:
    """Return what the service's own gateway reads its cursors from."""
    return {"queryStringParameters": {"after": after} if after else {}}


@logger.inject_lambda_context
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serve an event of an API Gateway REST API."""
    metrics.add_metric("Requests", MetricUnit.Count, 1)
    return app.resolve(event, context)
