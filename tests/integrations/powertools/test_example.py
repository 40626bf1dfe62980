"""The logistics API, served by AWS's own runtime client, and what deploys it."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools.shared import constants
from aws_lambda_powertools.shared.version import VERSION
from powertools_support import event_of
from support import eventually, is_working

import logistics
import logistics_powertools
from serverless_pg_kit import Settings
from serverless_pg_kit.testing import LambdaContainer, PostgresServer

if tuple(map(int, VERSION.split("."))) < (3, 31):
    pytest.skip(
        "the example is for Powertools 3.31: what came before reads its models otherwise",
        allow_module_level=True,
    )

FOLDER = Path(logistics_powertools.__file__).parent
yaml: Any = importlib.import_module("yaml")
Conn = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresServer]:
    """A server with the example's tables."""
    with PostgresServer(max_connections=30) as server:
        with psycopg.connect(server.dsn) as conn:
            for name in ("schema.sql", "data.sql"):
                conn.execute((Path(logistics.__file__).parent / name).read_bytes())
        yield server


@pytest.fixture(scope="module")
def container(database: PostgresServer) -> Iterator[LambdaContainer]:
    """The function, as the template deploys it, but with a database of ours."""
    function = template()["Resources"]["LogisticsFunction"]["Properties"]
    variables = {name: value for name, value in variables_of(function["Environment"]["Variables"]).items() if value}
    environment = {**variables, "SERVERLESS_PG_CONNINFO": database.dsn, "PGOPTIONS": "-c timezone=Asia/Kolkata"}
    environment["SERVERLESS_PG_DEADLINE_MARGIN"] = "2"  # seconds: what a busy machine may need for an answer
    handler = function["Handler"]
    with LambdaContainer(handler, folder=FOLDER.parent, environment=environment, timeout=60.0) as made:
        yield made


@pytest.fixture
def conn(database: PostgresServer) -> Iterator[Conn]:
    """A superuser's connection that looks on."""
    with psycopg.connect(database.superuser_dsn, dbname="app", autocommit=True) as connection:
        yield connection


def variables_of(given: dict[str, Any]) -> dict[str, str]:
    """Return the environment variables whose values stand in the file itself."""
    return {name: value for name, value in given.items() if isinstance(value, str) and "${" not in value}


def ask(container: LambdaContainer, method: str, path: str, status: int = 200, body: Any = None, **query: Any) -> Any:
    """Return the decoded body of the answer to a full-sized event; it has to have `status`."""
    texts = {name: str(value) for name, value in query.items()}
    answer = container.invoke(event_of("api_gateway_v1", method, path, body, texts or None))
    assert answer["statusCode"] == status, answer
    return json.loads(answer["body"])


def order(warehouse_id: int, **pieces: int) -> dict[str, Any]:
    """Return an order's body; `pieces` are named like ``p2``, for the product 2."""
    items = [{"product_id": int(name[1:]), "quantity": quantity} for name, quantity in pieces.items()]
    return {"warehouse_id": warehouse_id, "items": items}


def stock(conn: Conn, warehouse_id: int, product_id: int) -> int:
    """Return the pieces on one shelf."""
    query = "select quantity from inventory where warehouse_id = %s and product_id = %s"
    row = conn.execute(query, [warehouse_id, product_id]).fetchone()
    assert row
    return int(row[0])


def test_pages(container: LambdaContainer) -> None:
    """Following the cursors visits every shelf and the newest sales once; money is text, times are UTC."""
    page = ask(container, "GET", "/sales", limit=2)
    after = ask(container, "GET", "/sales", limit=2, after=page["next"])
    assert [sale["id"] for sale in page["items"] + after["items"]] == [2000, 1999, 1998, 1997]
    assert page["items"][0]["unit_price"] == "2.37"
    assert datetime.fromisoformat(page["items"][0]["sold_at"].replace("Z", "+00:00")).utcoffset() == timedelta(0)
    shelves: list[tuple[int, int]] = []
    start: dict[str, Any] = {}
    while True:
        page = ask(container, "GET", "/inventory", limit=150, **start)
        shelves += [(shelf["warehouse_id"], shelf["product_id"]) for shelf in page["items"]]
        if page["next"] is None:
            break
        start = {"after": page["next"]}
    assert len(shelves) == len(set(shelves)) == 180


def test_fulfilment(container: LambdaContainer, conn: Conn) -> None:
    """An order takes the stock, and what was made can be read again."""
    before = stock(conn, 1, 2)
    made = ask(container, "POST", "/fulfilments", 201, order(1, p2=3))
    assert made["items"] == [{"product_id": 2, "sku": "SKU-0002", "quantity": 3}]
    assert stock(conn, 1, 2) == before - 3
    assert ask(container, "GET", f"/fulfilments/{made['id']}") == made


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/fulfilments/99999", 404, None),
        ("GET", "/fulfilments/none", 422, None),
        ("GET", "/fulfilments/0", 422, None),
        ("POST", "/fulfilments", 409, order(1, p2=1, p3=10**6)),
        ("POST", "/fulfilments", 422, order(99, p2=1)),
        ("POST", "/fulfilments", 422, order(1, p999=1)),
        ("POST", "/fulfilments", 422, order(1)),
        ("POST", "/fulfilments", 422, order(1, p2=0)),
        ("POST", "/fulfilments", 422, {"warehouse_id": 1, "items": [{"product_id": 2, "quantity": 1}] * 2}),
        ("POST", "/fulfilments", 422, {**order(1, p2=1), "express": True}),
        ("GET", "/nowhere", 404, None),
    ],
)
def test_refusals(container: LambdaContainer, conn: Conn, method: str, path: str, status: int, body: Any) -> None:
    """What cannot be met is refused with a reason, and leaves everything as it was."""
    before = conn.execute("select sum(quantity), count(*) from inventory, fulfilments").fetchone()
    assert ask(container, method, path, status, body)
    assert conn.execute("select sum(quantity), count(*) from inventory, fulfilments").fetchone() == before


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 201}, {"limit": "ten"}])
def test_bad_page_size(container: LambdaContainer, query: dict[str, Any]) -> None:
    """Validation refuses what the schema does not allow, before anything is acquired."""
    assert ask(container, "GET", "/sales", 422, None, **query)["detail"][0]["loc"] == ["query", "limit"]


def test_bad_cursor(container: LambdaContainer) -> None:
    """A cursor that is none is the client's fault."""
    assert ask(container, "GET", "/sales", 400, None, after="nonsense") == {"error": "after is not a cursor"}


def test_slow_query_is_answered_before_the_deadline(container: LambdaContainer, conn: Conn) -> None:
    """An order that waits for a lock longer than the invocation lasts is answered with 503 by the function itself; the
    server goes on with nothing of it."""
    ask(container, "GET", "/fulfilments/1")
    count = conn.execute("select count(*) from fulfilments").fetchone()
    event = event_of("api_gateway_v1", "POST", "/fulfilments", order(2, p2=1))
    with conn.transaction():
        conn.execute("select * from inventory where warehouse_id = 2 for update")
        started = time.monotonic()
        answer = container.invoke(event, timeout=5.0)
        assert time.monotonic() - started < 5.0
        assert (answer["statusCode"], json.loads(answer["body"])) == (503, {"error": "try again"})
        assert answer["multiValueHeaders"]["retry-after"] == ["1"]
        waiting = "select count(*) from pg_stat_activity where application_name like 'logistics%' and state = 'active'"
        assert eventually(lambda: conn.execute(waiting).fetchone() == (0,))
    assert container.starts == 1
    assert ask(container, "POST", "/fulfilments", 201, order(2, p2=1))["warehouse_id"] == 2
    assert conn.execute("select count(*) - 1 from fulfilments").fetchone() == count
    assert not is_working(conn, "logistics")


def test_database_that_is_gone(database: PostgresServer) -> None:
    """Without a server the function says so, in time."""
    environment = {"DATABASE_URL": "postgresql://app@127.0.0.1:1/app", "SERVERLESS_PG_MAX_WAIT": "0.3"}
    environment |= {"POWERTOOLS_METRICS_NAMESPACE": "Logistics", "POWERTOOLS_SERVICE_NAME": "logistics"}
    handler = "logistics_powertools.app.handler"
    with LambdaContainer(handler, folder=FOLDER.parent, environment=environment, timeout=60.0) as container:
        assert ask(container, "GET", "/sales", 503) == {"error": "try again"}
        assert '"PostgresFailures"' in container.log


def test_logs_and_metrics_are_clean(container: LambdaContainer) -> None:
    """Metrics arrive, there is no warning among the log lines, and no secret."""
    ask(container, "GET", "/fulfilments/1")
    lines = [line for line in container.log.splitlines() if line]
    blobs = [json.loads(line) for line in lines if '"_aws"' in line]
    assert any("PostgresConnects" in blob for blob in blobs)
    assert all(blob["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Logistics" for blob in blobs)
    assert [line for line in lines if not line.startswith("{")] == []
    assert "password" not in container.log


def test_openapi(container: LambdaContainer) -> None:
    """The schema names each route, its models and its bounds."""
    schema = ask(container, "GET", "/openapi", format="json")
    assert schema["openapi"].startswith("3.")
    sales = schema["paths"]["/sales"]["get"]
    limit = next(parameter for parameter in sales["parameters"] if parameter["name"] == "limit")["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 200, 50)
    assert schema["components"]["schemas"]["Order"]["required"] == ["warehouse_id", "items"]
    assert "Fulfilment" in schema["components"]["schemas"]


class Tags(yaml.SafeLoader):  # type: ignore[misc]
    """Reads CloudFormation's ``!Ref`` and its like as mappings from the tag."""


def tagged(loader: Any, tag: str, node: Any) -> Any:
    """Return what stands behind a tag."""
    make = {"scalar": loader.construct_scalar, "sequence": loader.construct_sequence}
    return {tag: make.get(node.id, loader.construct_mapping)(node)}


Tags.add_multi_constructor("!", tagged)


def template() -> Any:
    """Return the SAM template."""
    return yaml.load((FOLDER / "template.yaml").read_text(), Tags)


def serverless() -> Any:
    """Return the Serverless Framework's file."""
    return yaml.safe_load((FOLDER / "serverless.yml").read_text())


def deployed() -> dict[str, tuple[str, dict[str, Any], set[tuple[str, str]]]]:
    """Return for each way to deploy: the handler, the environment, and the routes."""
    function = template()["Resources"]["LogisticsFunction"]["Properties"]
    events = [event["Properties"] for event in function["Events"].values()]
    other = serverless()
    [api] = other["functions"].values()
    routes = {tuple(event["http"].split()) for event in api["events"]}
    return {
        "sam": (
            function["Handler"],
            function["Environment"]["Variables"],
            {(event["Method"], event["Path"]) for event in events},
        ),
        "serverless": (api["handler"], other["provider"]["environment"], routes),
    }


@pytest.mark.parametrize("way", ["sam", "serverless"])
def test_deployment_fits_the_code(container: LambdaContainer, way: str) -> None:
    """Handler, variables and routes are those of the code: a typo is found here and not on AWS."""
    handler, environment, routes = deployed()[way]
    module, _, name = handler.rpartition(".")
    assert f"def {name}(" in (FOLDER.parent / f"{module.replace('.', '/')}.py").read_text()
    ours = {name: value for name, value in environment.items() if name.startswith("SERVERLESS_PG_")}
    assert Settings.from_config({**ours, "SERVERLESS_PG_CONNINFO": "dbname=app"}).max_size == 1
    known = {value for value in vars(constants).values() if isinstance(value, str)}
    assert {name for name in environment if name.startswith("POWERTOOLS_")} <= known
    variables = importlib.import_module("logistics_powertools.database").VARIABLES
    assert {name for name in environment if name.startswith("DATABASE_")} == set(variables)
    assert all(name.startswith(("SERVERLESS_PG_", "POWERTOOLS_", "DATABASE_")) for name in environment)
    paths = ask(container, "GET", "/openapi", format="json")["paths"]
    served = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert routes == served | {("GET", "/openapi")}


def test_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret goes before IAM, IAM before the connection string; nothing is asked of AWS before it is needed."""
    choose = importlib.import_module("logistics_powertools.database").credentials
    iam = {"DATABASE_HOST": "db.example", "DATABASE_USER": "app", "DATABASE_PORT": "5433"}
    assert choose({"DATABASE_SECRET": "", "DATABASE_HOST": ""}) is None
    assert repr(choose(iam)) == "rds_iam(host='db.example', user='app', port=5433)"
    assert repr(choose({**iam, "DATABASE_SECRET": "logistics/database"})) == "secrets_manager('logistics/database')"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "made up")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert "Action=connect&DBUser=app" in choose(iam)()["password"]


def test_one_command_starts_it() -> None:
    """``python -m logistics_powertools.local`` serves the API on this machine until Ctrl-C."""
    command = [sys.executable, "-m", "logistics_powertools.local", "0"]
    with subprocess.Popen(command, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert len(json.loads(answer.read())["items"]) == 2
            root = url.rpartition("/")[0]
            body = json.dumps(order(1, p2=1)).encode()
            request = urllib.request.Request(f"{root}/fulfilments", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
            process.send_signal(signal.SIGINT)
            assert "done" in process.communicate(timeout=60)[0]
        finally:
            process.kill()
