"""The logistics example: what its four functions answer, and what they leave in the database."""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import logistics
from serverless_pg_kit.testing import PostgresServer

FOLDER = Path(logistics.__file__).parent
Conn = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def dsn() -> Iterator[str]:
    """The ordinary role's DSN of a server with the example's tables and data."""
    with PostgresServer(max_connections=30) as server:
        with psycopg.connect(server.dsn) as conn:
            for name in ("schema.sql", "data.sql"):
                conn.execute((FOLDER / name).read_bytes())
        # A session that does not live in UTC shows whether answers do.
        yield make_conninfo(server.dsn, options="-c timezone=Asia/Kolkata")


@pytest.fixture
def conn(dsn: str) -> Iterator[Conn]:
    """A connection that looks on."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def handlers(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The handlers as a new container imports them."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    module = importlib.reload(importlib.import_module("logistics.handlers"))
    yield module
    module.engine.close()


def answer(response: dict[str, Any], status: int = 200) -> Any:
    """Return the decoded body of a proxy response that has `status`."""
    assert (response["statusCode"], response["headers"]) == (status, {"content-type": "application/json"}), response
    return json.loads(response["body"])


def query(**parameters: Any) -> dict[str, Any]:
    """An HTTP API event with a query string."""
    return {"version": "2.0", "queryStringParameters": {name: str(value) for name, value in parameters.items()}}


def order(warehouse_id: Any, items: Any) -> dict[str, Any]:
    """An HTTP API event with an order; `items` are pairs of product and quantity."""
    body = {
        "warehouse_id": warehouse_id,
        "items": [{"product_id": product, "quantity": quantity} for product, quantity in items],
    }
    return {"version": "2.0", "body": json.dumps(body)}


def pages(handler: Any, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the items of all pages."""
    after: dict[str, Any] = {}
    while True:
        body = answer(handler(query(limit=limit, **after), None))
        yield body["items"]
        if body["next"] is None:
            return
        after = {"after": body["next"]}


def contents(conn: Conn) -> list[Any]:
    """Return all that an order could change."""
    tables = ("fulfilments", "fulfilment_items", "inventory")
    return [conn.execute(f"select * from {name} order by 1, 2".encode()).fetchall() for name in tables]


def stock(conn: Conn, warehouse_id: int, product_id: int) -> int:
    """Return the pieces on one shelf."""
    row = conn.execute(
        "select quantity from inventory where warehouse_id = %s and product_id = %s", [warehouse_id, product_id]
    ).fetchone()
    assert row
    return int(row[0])


def test_sales_newest_first(handlers: ModuleType) -> None:
    """A page of sales begins with the newest."""
    items = answer(handlers.list_sales(query(limit=5), None))["items"]

    assert [item["id"] for item in items] == [2000, 1999, 1998, 1997, 1996]


def test_sales_are_plain_json(handlers: ModuleType) -> None:
    """Money is text with its cents, times are UTC."""
    (item,) = answer(handlers.list_sales(query(limit=1), None))["items"]

    assert item["unit_price"] == "2.37"
    assert item["sku"] == "SKU-0001"
    assert datetime.fromisoformat(item["sold_at"]).utcoffset() == timedelta(0)


def test_sales_pages_cover_everything_once(handlers: ModuleType) -> None:
    """Following the cursors visits every sale once, in order."""
    seen = [item["id"] for page in pages(handlers.list_sales, 190) for item in page]

    assert seen == list(range(2000, 0, -1))


def test_sales_page_with_equal_times(handlers: ModuleType, conn: Conn) -> None:
    """Sales of the same moment are neither lost nor repeated at the edge of a page."""
    conn.execute(
        "insert into sales (product_id, quantity, unit_price, sold_at)"
        " select 1, 1, 1, '2030-01-01' from generate_series(1, 5)"
    )
    seen = [item["id"] for page in pages(handlers.list_sales, 2) for item in page if item["sold_at"] > "2029"]
    conn.execute("delete from sales where sold_at >= '2030-01-01'")

    assert len(seen) == 5
    assert seen == sorted(set(seen), reverse=True)


def test_sales_use_the_index(conn: Conn) -> None:
    """A page deep in the list is read from the index, not sorted."""
    plan = conn.execute(
        "explain select * from sales where (sold_at, id) < ('2026-01-05', 7) order by sold_at desc, id desc limit 5"
    ).fetchall()

    assert "sales_newest" in str(plan)
    assert "Sort" not in str(plan)


def test_inventory_has_no_empty_shelves(handlers: ModuleType, conn: Conn) -> None:
    """The inventory lists every shelf with stock, and no other, by warehouse and product."""
    seen = [
        (item["warehouse_id"], item["product_id"], item["quantity"])
        for page in pages(handlers.list_inventory, 30)
        for item in page
    ]

    assert seen == conn.execute("select * from inventory where quantity > 0 order by 1, 2").fetchall()
    assert len(seen) == 180


@pytest.mark.parametrize("handler", ["list_sales", "list_inventory"])
@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "201"},
        {"limit": "ten"},
        {"limit": "²"},
        {"limit": ""},
        {"limit": "9" * 5000},
        {"after": ""},
        {"after": "nonsense"},
        {"after": "äöü"},
        {"after": base64.b64encode(b"2026-01-01|7").decode()},
        {"after": base64.b64encode(b"1|2|3").decode()},
        {"after": base64.b64encode(b"x|y").decode()},
    ],
)
def test_bad_page_is_refused(handlers: ModuleType, handler: str, parameters: dict[str, str]) -> None:
    """A page that cannot be understood is a 400 with a reason."""
    assert answer(getattr(handlers, handler)(query(**parameters), None), 400)["error"]


def test_order_takes_stock(handlers: ModuleType, conn: Conn) -> None:
    """A fulfilment is recorded with its items, and the stock is smaller by them."""
    before = stock(conn, 1, 2), stock(conn, 1, 3)

    body = answer(handlers.create_fulfilment(order(1, [(3, 4), (2, 1)]), None), 201)

    assert body["items"] == [
        {"product_id": 2, "sku": "SKU-0002", "quantity": 1},
        {"product_id": 3, "sku": "SKU-0003", "quantity": 4},
    ]
    assert (stock(conn, 1, 2), stock(conn, 1, 3)) == (before[0] - 1, before[1] - 4)
    assert answer(handlers.get_fulfilment({"pathParameters": {"id": str(body["id"])}}, None)) == body


def test_order_in_base64(handlers: ModuleType) -> None:
    """A gateway may hand over the body in base64."""
    body = base64.b64encode(order(1, [(2, 1)])["body"].encode()).decode()

    answer(handlers.create_fulfilment({"version": "2.0", "body": body, "isBase64Encoded": True}, None), 201)


def test_rest_api_payload(handlers: ModuleType) -> None:
    """A REST API's event has nulls where an HTTP API's has nothing."""
    event = {"httpMethod": "GET", "queryStringParameters": None, "pathParameters": None, "body": None}

    assert len(answer(handlers.list_sales(event, None))["items"]) == 50
    assert len(answer(handlers.list_inventory(event, None))["items"]) == 50
    answer(handlers.get_fulfilment(event, None), 400)
    answer(handlers.create_fulfilment(event, None), 400)


@pytest.mark.parametrize(
    ("event", "status", "says"),
    [
        (order(99, [(2, 1)]), 422, "no warehouse 99"),
        (order(1, [(2, 1), (999, 1)]), 422, "no product 999"),
        (order(1, [(2, 1), (3, 10**6)]), 409, "too little of: 3"),
        (order(1, [(2, 1), (9, 1)]), 409, "too little of: 9"),
        (order(1, []), 400, "items"),
        (order(1, [(2, 1)] * 2), 400, "listed twice"),
        (order(1, [(2, 1), (3, 0)]), 400, "quantity"),
        (order(1, [(2, -1)]), 400, "quantity"),
        (order(1, [(2, 1.5)]), 400, "quantity"),
        (order(1, [(2, True)]), 400, "quantity"),
        (order(1, [(2, None)]), 400, "quantity"),
        (order(1, [(2**63, 1)]), 400, "product_id"),
        (order(None, [(2, 1)]), 400, "warehouse_id"),
        (order([1], [(2, 1)]), 400, "warehouse_id"),
        ({"body": '{"warehouse_id": 1, "items": [2]}'}, 400, "product_id is missing"),
        ({"body": '{"warehouse_id": 1, "items": {"product_id": 1}}'}, 400, "items"),
        ({"body": '{"warehouse_id": NaN, "items": []}'}, 400, "warehouse_id"),
        ({"body": '{"warehouse_id": 1'}, 400, "JSON"),
        ({"body": "[" * 100_000}, 400, "JSON"),
        ({"body": "7" * 5000}, 400, ""),
        ({"body": "[]"}, 400, "warehouse_id is missing"),
        ({"body": ""}, 400, "JSON"),
        ({}, 400, "JSON"),
        ({"body": "*", "isBase64Encoded": True}, 400, "base64"),
        ({"body": "/w==", "isBase64Encoded": True}, 400, "JSON"),
    ],
)
def test_refused_order_changes_nothing(
    handlers: ModuleType, conn: Conn, event: dict[str, Any], status: int, says: str
) -> None:
    """An order that cannot be met or understood is a 4xx that says why, and leaves every row as it was."""
    before = contents(conn)

    assert says in answer(handlers.create_fulfilment(event, None), status)["error"]
    assert contents(conn) == before


def test_parallel_orders_do_not_deadlock(handlers: ModuleType, conn: Conn) -> None:
    """Orders for the same products in every sequence are all met, and the stock adds up."""
    before = [stock(conn, 2, product) for product in (1, 2, 3, 4)]
    forward = [(product, 1) for product in (1, 2, 3, 4)]
    events = [order(2, forward), order(2, forward[::-1])] * 30

    with ThreadPoolExecutor(6) as threads:
        responses = list(threads.map(lambda event: handlers.create_fulfilment(event, None), events))

    assert {response["statusCode"] for response in responses} == {201}
    assert [stock(conn, 2, product) for product in (1, 2, 3, 4)] == [count - 60 for count in before]


def test_parallel_orders_do_not_oversell(handlers: ModuleType, conn: Conn) -> None:
    """Of more orders than there are pieces exactly as many are met as there are."""
    conn.execute("update inventory set quantity = 7 where warehouse_id = 3 and product_id = 5")

    with ThreadPoolExecutor(6) as threads:
        responses = list(threads.map(lambda _: handlers.create_fulfilment(order(3, [(5, 1)]), None), range(20)))

    statuses = [response["statusCode"] for response in responses]
    assert (statuses.count(201), statuses.count(409)) == (7, 13)
    assert stock(conn, 3, 5) == 0


def test_fulfilment_by_id(handlers: ModuleType) -> None:
    """A fulfilment comes with its items."""
    body = answer(handlers.get_fulfilment({"pathParameters": {"id": "1"}}, None))

    assert (body["id"], body["warehouse_id"]) == (1, 2)
    assert [(item["product_id"], item["quantity"]) for item in body["items"]] == [(4, 1), (5, 2), (6, 3)]


@pytest.mark.parametrize("id_", ["999999", str(2**63 - 1)])
def test_unknown_fulfilment(handlers: ModuleType, id_: str) -> None:
    """An id that nothing has is a 404."""
    assert id_ in answer(handlers.get_fulfilment({"pathParameters": {"id": id_}}, None), 404)["error"]


@pytest.mark.parametrize("id_", ["", "0", "-1", "abc", "1.0", "1;drop table sales", "٣", str(2**63), "9" * 5000])
def test_fulfilment_by_no_id(handlers: ModuleType, id_: str) -> None:
    """What cannot be an id is a 400."""
    answer(handlers.get_fulfilment({"pathParameters": {"id": id_}}, None), 400)


def test_plain_handlers_answer_the_same(handlers: ModuleType, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's contestants differ in how they connect, not in what they answer."""
    monkeypatch.setenv("DATABASE_URL", dsn)
    plain = importlib.reload(importlib.import_module("logistics.plain_handlers"))
    try:
        for name, event in [
            ("list_sales", query(limit=3)),
            ("list_inventory", query(limit=3)),
            ("get_fulfilment", {"pathParameters": {"id": "7"}}),
            ("get_fulfilment", {"pathParameters": {"id": "x"}}),
            ("create_fulfilment", order(99, [(1, 1)])),
        ]:
            assert getattr(plain, name)(event, None) == getattr(handlers, name)(event, None)
        answer(plain.create_fulfilment(order(1, [(1, 1)]), None), 201)
    finally:
        plain.connection.close()
