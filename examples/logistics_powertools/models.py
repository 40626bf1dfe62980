"""What goes in and what comes out, as pydantic models: validation and OpenAPI are made of them."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from logistics.gateway import MAX_ID, MAX_ITEMS, MAX_PIECES


def in_utc(moment: datetime) -> datetime:
    """Return `moment` in UTC, whatever zone the session lives in."""
    return moment.astimezone(timezone.utc)


Id = Annotated[int, Field(ge=1, le=MAX_ID)]
Moment = Annotated[datetime, AfterValidator(in_utc)]


class OrderItem(BaseModel):
    """So many pieces of a product."""

    model_config = ConfigDict(extra="forbid")

    product_id: Id
    quantity: Annotated[int, Field(ge=1, le=MAX_PIECES)]


class Order(BaseModel):
    """What is to leave a warehouse."""

    model_config = ConfigDict(extra="forbid")

    warehouse_id: Id
    items: Annotated[list[OrderItem], Field(min_length=1, max_length=MAX_ITEMS)]

    @model_validator(mode="after")
    def lists_each_product_once(self) -> Self:
        """Refuse an order whose meaning would be a guess."""
        if len(self.quantities) < len(self.items):
            raise ValueError("a product is listed twice")
        return self

    @property
    def quantities(self) -> dict[int, int]:
        """The pieces by product."""
        return {item.product_id: item.quantity for item in self.items}


class Item(BaseModel):
    """So many pieces of a product in a fulfilment."""

    product_id: int
    sku: str
    quantity: int


class Fulfilment(BaseModel):
    """What has left a warehouse."""

    id: int
    warehouse_id: int
    created_at: Moment
    items: list[Item]


class Sale(BaseModel):
    """A sale; its price is text, so that no client reads it into a binary fraction."""

    id: int
    sku: str
    quantity: int
    unit_price: Decimal
    sold_at: Moment


class Stock(BaseModel):
    """What is on a shelf."""

    warehouse_id: int
    warehouse: str
    product_id: int
    sku: str
    quantity: int


class Sales(BaseModel):
    """A page of sales; `next` is the ``after`` of the following one."""

    items: list[Sale]
    next: str | None


class Inventory(BaseModel):
    """A page of the inventory; `next` is the ``after`` of the following one."""

    items: list[Stock]
    next: str | None
