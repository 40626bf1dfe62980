"""The decorator ``postgres_middleware``: when it commits, what it injects, and whom it gets along with."""

from __future__ import annotations

import itertools
import time
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.middleware_factory import lambda_handler_decorator
from aws_lambda_powertools.middleware_factory.exceptions import MiddlewareInvalidArgumentError
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent
from aws_lambda_powertools.utilities.idempotency.exceptions import IdempotencyItemAlreadyExistsError
from aws_lambda_powertools.utilities.idempotency.persistence.base import BasePersistenceLayer
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord
from aws_lambda_powertools.utilities.validation import validator
from powertools_support import Context
from psycopg import IsolationLevel
from support import entries

from serverless_pg_kit import Engine, aws_lambda
from serverless_pg_kit_powertools import postgres_middleware

EVENT = {"id": 1}


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (None, True),
        ({"statusCode": 200}, True),
        ({"statusCode": 404}, True),
        ({"statusCode": 500}, False),
        ({"statusCode": "503"}, False),
        ({"messageVersion": "1.0", "response": {"httpStatusCode": 200}}, True),
        ({"messageVersion": "1.0", "response": {"httpStatusCode": 500}}, False),
        ({"response": "text"}, True),
        ({"response": {}, "statusCode": 200}, True),
        ({"response": {"functionResponse": {"responseState": "FAILURE"}}}, False),
        ({"response": {"functionResponse": {"responseState": "REPROMPT"}}}, True),
        ({"response": {"functionResponse": {"responseBody": {}}}}, True),
    ],
)
def test_result_decides(engine: Engine, superuser: Any, ledger: str, context: Any, result: Any, kept: bool) -> None:
    """A proxy response or an agent's answer with a 5xx rolls back, everything else commits."""

    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        conn.execute("insert into ledger values (1)")
        return result

    assert handler(EVENT, context) == result
    assert entries(superuser) == ([1] if kept else [])
    assert engine.stats.in_use == 0


def test_exception_rolls_back(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """The function's own exception goes through."""

    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (1)")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        handler(EVENT, context)
    assert entries(superuser) == []
    assert engine.stats.in_use == 0


@pytest.mark.parametrize(("status", "kept"), [(400, False), (409, False), (500, True), (200, True)])
def test_rollback_on(engine: Engine, superuser: Any, ledger: str, context: Any, status: int, kept: bool) -> None:
    """Which statuses roll back is the user's to say, also that 500 does not."""

    @postgres_middleware(engine=engine, rollback_on=range(400, 500))
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        conn.execute("insert into ledger values (1)")
        return {"statusCode": status}

    handler(EVENT, context)
    assert entries(superuser) == ([1] if kept else [])


def test_untouched_acquires_nothing(engine: Engine, context: Any) -> None:
    """A function without the parameter costs no connection until it touches ``engine.connection``."""

    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any) -> Any:
        return engine.connection.execute("select 1").fetchone() if event["id"] else None

    assert handler({"id": 0}, context) is None
    assert engine.stats.connects == 0
    assert handler(EVENT, context) == (1,)
    assert (engine.stats.connects, engine.stats.in_use) == (1, 0)


def test_bare_uses_the_default_engine(engine: Engine, context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options there is one engine for the process."""
    monkeypatch.setitem(aws_lambda._defaults, Engine, engine)

    @postgres_middleware
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        return conn.execute("select 7").fetchone()

    assert handler(EVENT, context) == (7,)
    assert engine.stats.commits == 1


def test_connection_by_another_name_or_by_none(engine: Engine, context: Any) -> None:
    """``inject`` names the parameter; ``None`` leaves one that is called ``conn`` alone."""

    @postgres_middleware(engine=engine, inject="db")
    def renamed(event: Any, context: Any, db: psycopg.Connection[Any]) -> Any:
        return db.execute("select 7").fetchone()

    @postgres_middleware(engine=engine, inject=None)
    def alone(event: Any, context: Any, conn: Any = "mine") -> Any:
        return conn

    assert renamed(EVENT, context) == (7,)
    assert alone(EVENT, context) == "mine"
    assert engine.stats.connects == 1


def test_tests_may_pass_their_own(engine: Engine, context: Any) -> None:
    """A unit test hands its own connection over, by name."""

    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: Any) -> Any:
        return conn

    assert handler(EVENT, context, conn="mine") == "mine"
    assert engine.stats.connects == 0


def test_transaction_options(engine: Engine, context: Any) -> None:
    """Isolation level and read-only mode reach the transaction."""

    @postgres_middleware(engine=engine, isolation_level=IsolationLevel.SERIALIZABLE, read_only=True)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        shown = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        return conn.execute(shown).fetchone()

    assert handler(EVENT, context) == ("serializable", "on")


def test_remaining_time_bounds_the_queries(engine: Engine) -> None:
    """A query that would outlive the invocation is cancelled while the function can still answer."""

    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        try:
            conn.execute("select pg_sleep(60)")
        except psycopg.errors.QueryCanceled:
            return {"statusCode": 503}

    started = time.monotonic()
    assert handler(EVENT, Context(1500)) == {"statusCode": 503}
    assert time.monotonic() - started < 10
    assert engine.stats.in_use == 0


class Store(BasePersistenceLayer):
    """Keeps the records of idempotency in memory, where DynamoDB keeps them in life."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: dict[str, DataRecord] = {}

    def _get_record(self, idempotency_key: str) -> DataRecord:
        return self.records[idempotency_key]

    def _put_record(self, data_record: DataRecord) -> None:
        if data_record.idempotency_key in self.records:
            raise IdempotencyItemAlreadyExistsError
        self.records[data_record.idempotency_key] = data_record

    def _update_record(self, data_record: DataRecord) -> None:
        self.records[data_record.idempotency_key] = data_record

    def _delete_record(self, data_record: DataRecord) -> None:
        del self.records[data_record.idempotency_key]


def decorators(engine: Engine) -> dict[str, Any]:
    """Return one of each kind of decorator that Powertools has for functions."""
    metrics = Metrics()
    metrics.add_metric("Orders", MetricUnit.Count, 1)
    schema = {"type": "object", "required": ["id"]}
    config = IdempotencyConfig(event_key_jmespath="id")
    return {
        "postgres": postgres_middleware(engine=engine),
        "logger": Logger().inject_lambda_context,
        "tracer": Tracer(disabled=True).capture_lambda_handler,
        "metrics": metrics.log_metrics,
        "validator": validator(inbound_schema=schema),
        "idempotent": idempotent(persistence_store=Store(), config=config),
    }


NAMES = ("postgres", "logger", "tracer", "metrics", "validator", "idempotent")


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
def test_any_order(engine: Engine, superuser: Any, ledger: str, context: Any, fails: bool) -> None:
    """Among Powertools' own decorators it may stand anywhere: the connection arrives, and the end is the same."""
    orders = [order for order in itertools.permutations(NAMES) if order.index("postgres") in (0, 2, 5)][::9]
    for number, order in enumerate(orders):

        def handler(event: Any, context: Any, conn: psycopg.Connection[Any], number: int = number) -> Any:
            conn.execute("insert into ledger values (%s)", [number])
            if fails:
                raise LookupError(number)
            return {"statusCode": 200}

        made = decorators(engine)
        decorated: Any = handler
        for name in order:
            decorated = made[name](decorated)
        if fails:
            with pytest.raises(LookupError):
                decorated({"id": number}, context)
        else:
            assert decorated({"id": number}, context) == {"statusCode": 200}
    assert len(orders) > 30
    assert entries(superuser) == ([] if fails else list(range(len(orders))))
    assert engine.stats.in_use == 0


def test_idempotent_answer_costs_no_connection(engine: Engine, superuser: Any, ledger: str, context: Any) -> None:
    """A repeated event is answered from the store, and nothing is written twice."""

    @postgres_middleware(engine=engine)
    @idempotent(persistence_store=Store(), config=IdempotencyConfig(event_key_jmespath="id"))
    def handler(event: Any, context: Any) -> Any:
        engine.connection.execute("insert into ledger values (1)")
        return {"statusCode": 201}

    assert handler(EVENT, context) == handler(EVENT, context) == {"statusCode": 201}
    assert entries(superuser) == [1]
    assert (engine.stats.connects, engine.stats.reuses) == (1, 0)


def test_behind_a_decorator_that_takes_no_names(engine: Engine, context: Any) -> None:
    """A middleware of the user's own that passes nothing on works with ``inject=None`` and ``engine.connection``."""

    @lambda_handler_decorator
    def narrow(handler: Any, event: Any, context: Any) -> Any:
        return handler(event, context)

    @postgres_middleware(engine=engine, inject=None)
    @narrow
    def handler(event: Any, context: Any) -> Any:
        return engine.connection.execute("select 7").fetchone()

    assert handler(EVENT, context) == (7,)


def test_two_databases(engine: Engine, server: Any, context: Any) -> None:
    """Stacked decorators with two engines inject two connections."""
    other = Engine(conninfo=server.dsn, application_name="other")

    @postgres_middleware(engine=engine)
    @postgres_middleware(engine=other, inject="reports")
    def handler(event: Any, context: Any, conn: Any, reports: Any) -> Any:
        return conn is not reports and reports.execute("select 7").fetchone()

    try:
        assert handler(EVENT, context) == (7,)
        assert (engine.stats.commits, other.stats.commits) == (1, 1)
    finally:
        other.close()


def test_tenants(engine: Engine, context: Any) -> None:
    """The event may choose whose database it is for."""

    @postgres_middleware(engine=engine, conninfo=lambda event, context: {"options": f"-c work_mem={event['memory']}"})
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        return conn.execute("show work_mem").fetchone()

    assert handler({"memory": "7MB"}, context) == ("7MB",)
    assert handler({"memory": "9MB"}, context) == ("9MB",)


async def answer_later(event: Any, context: Any) -> None:
    """An async handler."""


@pytest.mark.parametrize(
    ("decorate", "error"),
    [
        (lambda engine, use: use(engine=engine)(answer_later), "AsyncEngine"),
        (lambda engine, use: use(engine), "by name"),
        (lambda engine, use: use(engine="postgres://"), "class Engine, not str"),
        (lambda engine, use: use(engine=engine, rollback_on=500), "container of statuses"),
        (lambda engine, use: use(engine=engine, rollback_on="500"), "container of statuses"),
    ],
)
def test_misuse_is_told(engine: Engine, decorate: Any, error: str) -> None:
    """What cannot work is refused when it is decorated, and not in the first invocation."""
    with pytest.raises(TypeError, match=error):
        decorate(engine, postgres_middleware)


def test_objects_are_no_functions(engine: Engine) -> None:
    """Powertools' factory takes functions only, and says so."""
    with pytest.raises(MiddlewareInvalidArgumentError):
        postgres_middleware(engine=engine)(Context(1).get_remaining_time_in_millis)
