"""What a transaction costs on the wire, beside SQLAlchemy's own pool: these are the figures in docs/sqlalchemy.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.orm import Session
from sqlalchemy_stage import Make, Stage

from serverless_pg_kit.testing import PostgresServer

N = 3
"""Statements of each transaction."""

SELECT = sa.text("select 1")
AUTOCOMMIT = {"isolation_level": "AUTOCOMMIT"}


def begin(engine: sa.Engine) -> None:
    """Run a transaction by ``engine.begin()``."""
    with engine.begin() as conn:
        for _ in range(N):
            conn.execute(SELECT)


def session(engine: sa.Engine) -> None:
    """Run a transaction by a session of the ORM."""
    with Session(engine) as session:
        for _ in range(N):
            session.execute(SELECT)
        session.commit()


def level_of_connection(engine: sa.Engine) -> None:
    """Run a transaction with an isolation level of its own."""
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn, conn.begin():
        for _ in range(N):
            conn.execute(SELECT)


CASES: dict[str, tuple[Callable[[sa.Engine], None], dict[str, Any], tuple[int, int, int]]] = {
    "begin": (begin, {}, (2, 3, 3)),
    "session": (session, {}, (2, 3, 3)),
    "autocommit": (begin, AUTOCOMMIT, (0, 1, 2)),
    "level of the engine": (begin, {"isolation_level": "SERIALIZABLE"}, (2, 3, 4)),
    "level of a connection": (level_of_connection, {}, (2, 3, 5)),
}
"""By name: what is done, options of the engine, and the round trips beyond those of the statements: with SQLAlchemy's
pool, with its ``pool_pre_ping``, and with the kit."""


def round_trips(proxy: Proxy, work: Callable[[], object]) -> int:
    """Return the round trips of `work` when it was done often before, beyond those of its statements."""
    for _ in range(8):
        work()
    with proxy.counting() as traffic:
        work()
    assert traffic.flights == traffic.exchanges
    return traffic.exchanges - N


@pytest.mark.parametrize("case", CASES)
def test_round_trips(make: Make, proxy: Proxy, server: PostgresServer, case: str) -> None:
    """A transaction costs no more round trips than with ``pool_pre_ping``, an isolation level one or two more."""
    work, options, expected = CASES[case]
    stage: Stage = make(options, conninfo=proxy.reroute(server.dsn))
    arguments = conninfo_to_dict(proxy.reroute(server.dsn))
    got = []
    for pre_ping in (False, True):
        stock = sa.create_engine(
            "postgresql+psycopg://", connect_args=arguments, pool_pre_ping=pre_ping, pool_size=1, **options
        )
        got.append(round_trips(proxy, lambda stock=stock: work(stock)))  # type: ignore[misc]
        stock.dispose()
    got.append(round_trips(proxy, lambda: stage.run(lambda: work(stage.engine))))
    assert tuple(got) == expected
    assert stage.kit.stats.connects == 1


def test_unused_connection(make: Make, proxy: Proxy, server: PostgresServer) -> None:
    """A connection that is checked out and not used costs two round trips, and nothing is rolled back."""
    stage = make(conninfo=proxy.reroute(server.dsn))

    def work() -> None:
        stage.run(lambda: stage.engine.connect().close())

    assert round_trips(proxy, work) == 2 - N
    assert stage.kit.stats.rollbacks == 0


def test_rollback_after_prepared_statements(make: Make, proxy: Proxy, server: PostgresServer) -> None:
    """A rollback discards what psycopg has prepared, which costs what it costs with SQLAlchemy's pool, and no error."""
    stage = make(conninfo=proxy.reroute(server.dsn))
    errors = server.log.count("serverless_pg_kit_release")

    def work(commits: bool) -> None:
        with stage.engine.connect() as conn:
            conn.execute(SELECT)
            if commits:
                conn.commit()

    for _ in range(12):
        stage.run(lambda: work(True))
    with proxy.counting() as traffic:
        stage.run(lambda: work(False))
    assert [query for query in traffic.queries if query in ("ROLLBACK", "DEALLOCATE ALL")]
    assert traffic.exchanges == 1 + 1 + 2 + 1
    for _ in range(12):
        stage.run(lambda: work(True))
    assert server.log.count("serverless_pg_kit_release") == errors
    assert stage.kit.stats.connects == 1
