"""The routes. They read requests as examples/logistics does, by its gateway, and answer alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from logistics import gateway
from logistics_django import service

View = Callable[..., JsonResponse]


def answers(view: View) -> View:
    """Make JSON answers of what the caller got wrong."""

    @functools.wraps(view)
    def answer(request: HttpRequest, **path: int) -> JsonResponse:
        try:
            return view(request, **path)
        except gateway.BadRequest as error:
            return JsonResponse({"error": str(error)}, status=400)
        except service.Refusal as error:
            return JsonResponse({"error": str(error)}, status=error.status)

    return answer


def event(request: HttpRequest) -> gateway.Event:
    """Return `request` in the form that the gateway reads."""
    return {"queryStringParameters": request.GET.dict(), "body": request.body.decode(errors="replace")}


@require_GET
@answers
def list_sales(request: HttpRequest) -> JsonResponse:
    """GET /sales?limit=50&after=CURSOR: the newest sales first."""
    size = gateway.limit(event(request))
    rows = service.list_sales(size, gateway.sales_cursor(event(request)))
    return JsonResponse(gateway.page(rows, size, "sold_at", "id"))


@require_GET
@answers
def list_inventory(request: HttpRequest) -> JsonResponse:
    """GET /inventory?limit=50&after=CURSOR: what is in stock, by warehouse and product."""
    size = gateway.limit(event(request))
    rows = service.list_inventory(size, gateway.inventory_cursor(event(request)))
    return JsonResponse(gateway.page(rows, size, "warehouse_id", "product_id"))


@csrf_exempt
@require_POST
@answers
def create_fulfilment(request: HttpRequest) -> JsonResponse:
    """POST /fulfilments: take the items out of the warehouse's stock and record the fulfilment, or neither."""
    warehouse_id, quantities = gateway.order(event(request))
    return JsonResponse(service.create_fulfilment(warehouse_id, quantities), status=201)


@require_GET
@answers
def get_fulfilment(request: HttpRequest, id: int) -> JsonResponse:
    """GET /fulfilments/{id}: one fulfilment with its items."""
    return JsonResponse(service.get_fulfilment(id))


@require_GET
def warehouses(request: Any) -> JsonResponse:
    """GET /warehouses: pieces in stock for each, by SQL over ``request.db``."""
    rows = request.db.execute(
        "SELECT w.code, sum(i.quantity) FROM warehouses AS w JOIN inventory AS i ON i.warehouse_id = w.id"
        " GROUP BY 1 ORDER BY 1"
    )
    return JsonResponse(dict(rows.fetchall()))
