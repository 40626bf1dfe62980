"""What `logistics.service` does, over an async connection: its statements, rows and refusals, awaited."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row, dict_row, scalar_row

from logistics import service
from logistics.service import Fulfilment, Item, Sale, Stock

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Conn = AsyncConnection[TupleRow]


async def list_sales(conn: Conn, *, limit: int, after: tuple[datetime, int] | None = None) -> list[Sale]:
    """Return up to `limit` sales, newest first; `after` is the time and id of the last one already seen."""
    cursor = conn.cursor(row_factory=class_row(Sale))
    await cursor.execute(service.SALES, (*(after or service.FIRST_SALE), limit))
    return await cursor.fetchall()


async def list_inventory(conn: Conn, *, limit: int, after: tuple[int, int] = (0, 0)) -> list[Stock]:
    """Return up to `limit` shelves that have stock, by warehouse and product; `after` is the last pair of ids seen."""
    cursor = conn.cursor(row_factory=class_row(Stock))
    await cursor.execute(service.STOCK, (*after, limit))
    return await cursor.fetchall()


async def get_fulfilment(conn: Conn, fulfilment_id: int) -> Fulfilment:
    """Return one fulfilment with its items; raise `NotFound`."""
    head = await conn.cursor(row_factory=dict_row).execute(service.FULFILMENT, (fulfilment_id,))
    items = await conn.cursor(row_factory=class_row(Item)).execute(service.ITEMS, (fulfilment_id,))
    return service.fulfilment_of(fulfilment_id, await head.fetchone(), await items.fetchall())


async def create_fulfilment(conn: Conn, warehouse_id: int, quantities: Mapping[int, int]) -> Fulfilment:
    """Take `quantities` (product id: pieces, at least one) from the warehouse and record where they went.

    Raises `UnknownReference` or `OutOfStock`. Call it inside a transaction: its locks hold until the end of it.
    """
    await lock_stock(conn, warehouse_id, quantities)
    cursor = await conn.cursor(row_factory=scalar_row).execute(service.ADD_FULFILMENT, (warehouse_id,))
    fulfilment_id = int(await cursor.fetchone() or 0)
    products, pieces = list(quantities), list(quantities.values())
    await conn.execute(service.ADD_ITEMS, (fulfilment_id, products, pieces))
    await conn.execute(service.TAKE_STOCK, (products, pieces, warehouse_id))
    return await get_fulfilment(conn, fulfilment_id)


async def lock_stock(conn: Conn, warehouse_id: int, quantities: Mapping[int, int]) -> None:
    """Lock the shelves that `quantities` will empty and see that they hold enough."""
    cursor = await conn.execute(service.LOCK_STOCK, (warehouse_id, list(quantities)))
    stock: dict[int, int] = dict(await cursor.fetchall())
    if missing := service.missing_in(stock, quantities):
        warehouses = await known(conn, service.KNOWN_WAREHOUSES, [warehouse_id])
        service.refuse_unknown(warehouse_id, missing, warehouses, await known(conn, service.KNOWN_PRODUCTS, missing))
    service.refuse_shortage(warehouse_id, stock, quantities)


async def known(conn: Conn, query: LiteralString, ids: list[int]) -> set[int]:
    """Return those of `ids` that the `query` finds."""
    cursor = await conn.cursor(row_factory=scalar_row).execute(query, (ids,))
    return set(await cursor.fetchall())
