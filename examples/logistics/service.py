"""What the service does, over a plain psycopg connection: no framework, no kit, nothing of HTTP.

Every function works inside the transaction of its caller, who commits or rolls back. What the caller got wrong is a
`Refusal`; it is raised before anything has been written, so committing after one changes nothing. The statements have
names, because `logistics_fastapi` says the same ones, awaiting their answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict

from psycopg import Connection
from psycopg.rows import TupleRow, class_row, dict_row, scalar_row

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Conn = Connection[TupleRow]

FIRST_SALE = ("infinity", 0)
"""What comes before the newest sale."""


class Refusal(Exception):
    """The request cannot be met as it stands; the message is fit for the person who made it."""


class NotFound(Refusal):
    """There is no such thing."""


class UnknownReference(Refusal):
    """The order names a warehouse or a product that does not exist."""


class OutOfStock(Refusal):
    """The warehouse has less than was ordered."""


class Sale(TypedDict):
    id: int
    sku: str
    quantity: int
    unit_price: Decimal
    sold_at: datetime


class Stock(TypedDict):
    warehouse_id: int
    warehouse: str
    product_id: int
    sku: str
    quantity: int


class Item(TypedDict):
    product_id: int
    sku: str
    quantity: int


class Fulfilment(TypedDict):
    id: int
    warehouse_id: int
    created_at: datetime
    items: list[Item]


SALES = """
    SELECT s.id, p.sku, s.quantity, s.unit_price, s.sold_at
    FROM sales AS s JOIN products AS p ON p.id = s.product_id
    WHERE (s.sold_at, s.id) < (%s::timestamptz, %s)
    ORDER BY s.sold_at DESC, s.id DESC
    LIMIT %s
"""

STOCK = """
    SELECT i.warehouse_id, w.code AS warehouse, i.product_id, p.sku, i.quantity
    FROM inventory AS i
    JOIN warehouses AS w ON w.id = i.warehouse_id
    JOIN products AS p ON p.id = i.product_id
    WHERE (i.warehouse_id, i.product_id) > (%s, %s) AND i.quantity > 0
    ORDER BY i.warehouse_id, i.product_id
    LIMIT %s
"""

FULFILMENT = "SELECT id, warehouse_id, created_at FROM fulfilments WHERE id = %s"

ITEMS = """
    SELECT i.product_id, p.sku, i.quantity
    FROM fulfilment_items AS i JOIN products AS p ON p.id = i.product_id
    WHERE i.fulfilment_id = %s
    ORDER BY i.product_id
"""

LOCK_STOCK = """
    SELECT product_id, quantity FROM inventory
    WHERE warehouse_id = %s AND product_id = ANY(%s)
    ORDER BY product_id
    FOR NO KEY UPDATE
"""

KNOWN_WAREHOUSES = "SELECT id FROM warehouses WHERE id = ANY(%s)"
KNOWN_PRODUCTS = "SELECT id FROM products WHERE id = ANY(%s)"
ADD_FULFILMENT = "INSERT INTO fulfilments (warehouse_id) VALUES (%s) RETURNING id"
ADD_ITEMS = "INSERT INTO fulfilment_items SELECT %s, o.* FROM unnest(%s::bigint[], %s::integer[]) AS o"

TAKE_STOCK = """
    UPDATE inventory AS i SET quantity = i.quantity - o.pieces
    FROM unnest(%s::bigint[], %s::integer[]) AS o (product_id, pieces)
    WHERE i.warehouse_id = %s AND i.product_id = o.product_id
"""


def list_sales(conn: Conn, *, limit: int, after: tuple[datetime, int] | None = None) -> list[Sale]:
    """Return up to `limit` sales, newest first; `after` is the time and id of the last one already seen."""
    return conn.cursor(row_factory=class_row(Sale)).execute(SALES, (*(after or FIRST_SALE), limit)).fetchall()


def list_inventory(conn: Conn, *, limit: int, after: tuple[int, int] = (0, 0)) -> list[Stock]:
    """Return up to `limit` shelves that have stock, by warehouse and product; `after` is the last pair of ids seen."""
    return conn.cursor(row_factory=class_row(Stock)).execute(STOCK, (*after, limit)).fetchall()


def get_fulfilment(conn: Conn, fulfilment_id: int) -> Fulfilment:
    """Return one fulfilment with its items; raise `NotFound`."""
    head = conn.cursor(row_factory=dict_row).execute(FULFILMENT, (fulfilment_id,)).fetchone()
    items = conn.cursor(row_factory=class_row(Item)).execute(ITEMS, (fulfilment_id,)).fetchall()
    return fulfilment_of(fulfilment_id, head, items)


def create_fulfilment(conn: Conn, warehouse_id: int, quantities: Mapping[int, int]) -> Fulfilment:
    """Take `quantities` (product id: pieces, at least one) from the warehouse and record where they went.

    Raises `UnknownReference` or `OutOfStock`. Call it inside a transaction: its locks hold until the end of it.
    """
    _lock_stock(conn, warehouse_id, quantities)
    cursor = conn.cursor(row_factory=scalar_row).execute(ADD_FULFILMENT, (warehouse_id,))
    fulfilment_id = int(cursor.fetchone() or 0)
    products, pieces = list(quantities), list(quantities.values())
    conn.execute(ADD_ITEMS, (fulfilment_id, products, pieces))
    conn.execute(TAKE_STOCK, (products, pieces, warehouse_id))
    return get_fulfilment(conn, fulfilment_id)


def _lock_stock(conn: Conn, warehouse_id: int, quantities: Mapping[int, int]) -> None:
    """Lock the shelves that `quantities` will empty and see that they hold enough.

    The lock comes before the check, so that nobody takes the stock in between, and in the order of product ids, so
    that two orders for the same products wait for each other instead of deadlocking.
    """
    stock: dict[int, int] = dict(conn.execute(LOCK_STOCK, (warehouse_id, list(quantities))).fetchall())
    if missing := missing_in(stock, quantities):
        warehouses = _known(conn, KNOWN_WAREHOUSES, [warehouse_id])
        refuse_unknown(warehouse_id, missing, warehouses, _known(conn, KNOWN_PRODUCTS, missing))
    refuse_shortage(warehouse_id, stock, quantities)


def _known(conn: Conn, query: LiteralString, ids: list[int]) -> set[int]:
    return set(conn.cursor(row_factory=scalar_row).execute(query, (ids,)))


def fulfilment_of(fulfilment_id: int, head: dict[str, Any] | None, items: list[Item]) -> Fulfilment:
    """Return the fulfilment of these rows; raise `NotFound` if there is no `head`."""
    if head is None:
        raise NotFound(f"there is no fulfilment {fulfilment_id}")
    return Fulfilment(id=head["id"], warehouse_id=head["warehouse_id"], created_at=head["created_at"], items=items)


def missing_in(stock: Mapping[int, int], quantities: Mapping[int, int]) -> list[int]:
    """Return the products that are ordered but have no shelf."""
    return sorted(quantities.keys() - stock.keys())


def refuse_unknown(warehouse_id: int, missing: list[int], warehouses: set[int], products: set[int]) -> None:
    """Raise `UnknownReference` if there is no such warehouse or product; a mere lack of a shelf is no such thing."""
    if warehouse_id not in warehouses:
        raise UnknownReference(f"there is no warehouse {warehouse_id}")
    if unknown := [product for product in missing if product not in products]:
        raise UnknownReference(f"there is no product {_names(unknown)}")


def refuse_shortage(warehouse_id: int, stock: Mapping[int, int], quantities: Mapping[int, int]) -> None:
    """Raise `OutOfStock` if `stock` (product id: pieces) holds less than is ordered."""
    short = sorted(product for product, pieces in quantities.items() if stock.get(product, 0) < pieces)
    if short:
        raise OutOfStock(f"warehouse {warehouse_id} has too little of: {_names(short)}")


def _names(ids: list[int]) -> str:
    return ", ".join(map(str, ids))
