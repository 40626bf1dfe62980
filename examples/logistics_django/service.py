"""What the service does, by the ORM. What the caller got wrong is a `Refusal`, raised before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, Q

from logistics_django.models import Fulfilment, Item, Product, Sale, Shelf, Warehouse


class Refusal(Exception):
    """The request cannot be met as it stands; the message is fit for the person who made it."""

    status = 409


class NotFound(Refusal):
    """There is no such thing."""

    status = 404


class UnknownReference(Refusal):
    """The order names a warehouse or a product that does not exist."""

    status = 422


class OutOfStock(Refusal):
    """The warehouse has less than was ordered."""


def list_sales(limit: int, after: tuple[datetime, int] | None) -> list[dict[str, Any]]:
    """Return up to `limit` sales, newest first; `after` is the time and id of the last one already seen."""
    sales = Sale.objects.order_by("-sold_at", "-id")
    if after is not None:
        sold_at, id_ = after
        sales = sales.filter(Q(sold_at__lt=sold_at) | Q(sold_at=sold_at, id__lt=id_))
    return list(sales.values("id", "quantity", "unit_price", "sold_at", sku=F("product__sku"))[:limit])


def list_inventory(limit: int, after: tuple[int, int]) -> list[dict[str, Any]]:
    """Return up to `limit` shelves that have stock, by warehouse and product; `after` is the last pair of ids seen."""
    shelves = Shelf.objects.filter(pk__gt=after, quantity__gt=0).order_by("pk")[:limit]
    names = ("warehouse_id", "warehouse", "product_id", "sku", "quantity")
    columns = ("warehouse_id", "warehouse__code", "product_id", "product__sku", "quantity")
    return [dict(zip(names, row, strict=True)) for row in shelves.values_list(*columns)]


def get_fulfilment(id_: int) -> dict[str, Any]:
    """Return one fulfilment with its items; raise `NotFound`."""
    fulfilment = Fulfilment.objects.filter(id=id_).values("id", "warehouse_id", "created_at").first()
    if fulfilment is None:
        raise NotFound(f"there is no fulfilment {id_}")
    items = Item.objects.filter(fulfilment_id=id_).order_by("product_id")
    return {**fulfilment, "items": list(items.values("product_id", "quantity", sku=F("product__sku")))}


@transaction.atomic
def create_fulfilment(warehouse_id: int, quantities: Mapping[int, int]) -> dict[str, Any]:
    """Take `quantities` (product id: pieces) from the warehouse and record where they went.

    Raises `UnknownReference` or `OutOfStock`.
    """
    _lock_stock(warehouse_id, quantities)
    fulfilment = Fulfilment.objects.create(warehouse_id=warehouse_id)
    for product_id, pieces in quantities.items():
        Item.objects.create(fulfilment=fulfilment, product_id=product_id, quantity=pieces)
        shelf = Shelf.objects.filter(warehouse_id=warehouse_id, product_id=product_id)
        shelf.update(quantity=F("quantity") - pieces)
    return get_fulfilment(fulfilment.pk)


def _lock_stock(warehouse_id: int, quantities: Mapping[int, int]) -> None:
    """Lock the shelves in the order of their products, so that orders for the same ones wait instead of deadlocking;
    only then look whether they hold enough."""
    shelves = Shelf.objects.filter(warehouse_id=warehouse_id, product_id__in=quantities)
    stock = dict(shelves.select_for_update(no_key=True).order_by("product_id").values_list("product_id", "quantity"))
    if missing := sorted(quantities.keys() - stock.keys()):
        _explain_missing(warehouse_id, missing)
    if short := sorted(product for product, pieces in quantities.items() if stock.get(product, 0) < pieces):
        raise OutOfStock(f"warehouse {warehouse_id} has too little of: {_names(short)}")


def _explain_missing(warehouse_id: int, products: list[int]) -> None:
    if not Warehouse.objects.filter(id=warehouse_id).exists():
        raise UnknownReference(f"there is no warehouse {warehouse_id}")
    known = set(Product.objects.filter(id__in=products).values_list("id", flat=True))
    if unknown := [product for product in products if product not in known]:
        raise UnknownReference(f"there is no product {_names(unknown)}")


def _names(ids: list[int]) -> str:
    return ", ".join(map(str, ids))
