"""SQLAlchemy where the kit has something to say about connections: behind a pooler, in tests, under pressure."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from poolers import PgBouncer
from sqlalchemy import event, exc
from sqlalchemy.orm import Session
from sqlalchemy_stage import Make, Stage
from support import SYNC_ONLY, entries

from serverless_pg_kit.testing import PostgresServer, rolled_back
from serverless_pg_kit_sqlalchemy import create_engine

INSERT = sa.text("insert into ledger values (:entry)")


def test_pooler(make: Make, server: PostgresServer, superuser: Any, ledger: str) -> None:
    """Behind a pooler in transaction mode engines share its one connection, and nothing is prepared on it."""
    with PgBouncer(server, pool_mode="transaction", default_pool_size=1) as pooler:
        one, other = make(conninfo=pooler.dsn), make(conninfo=pooler.dsn)

        def work(stage: Stage, first: int) -> None:
            for number in range(first, first + 10):
                with stage.engine.begin() as conn:
                    conn.execute(INSERT, {"entry": number})
                    assert conn.scalar(sa.text("select count(*) from pg_prepared_statements")) == 0
            with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                assert conn.scalar(sa.text("select 1")) == 1

        for first in range(0, 40, 20):
            one.run(lambda first=first: work(one, first))  # type: ignore[misc]
            other.run(lambda first=first: work(other, first + 10))  # type: ignore[misc]
    assert entries(superuser) == list(range(40))
    assert (one.kit.stats.connects, one.kit.stats.in_use) == (1, 0)


@SYNC_ONLY
def test_rolled_back(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Inside ``rolled_back()`` sessions commit and roll back as ever, and afterwards nothing of it is there."""
    kit = make_engine()
    engine = create_engine(kit)
    with rolled_back(kit):
        with engine.begin() as conn:
            conn.execute(INSERT, {"entry": 1})
        with Session(engine) as session:
            session.execute(INSERT, {"entry": 2})
            session.rollback()
            session.execute(INSERT, {"entry": 3})
            session.commit()
        with engine.connect() as conn:
            assert conn.scalars(sa.text("select entry from ledger order by 1")).all() == [1, 3]
    assert entries(superuser) == []


def test_no_room(make: Make, tiny_server: PostgresServer) -> None:
    """On a server that is short of room a connection is given up after its checkout, and the next one connects."""
    stage = make(conninfo=tiny_server.dsn, max_connections=1, census_ttl=0)

    def work() -> None:
        for _ in range(3):
            with stage.engine.connect() as conn:
                assert conn.scalar(sa.text("select 1")) == 1

    stage.run(work)
    assert stage.kit.stats.yields >= 1
    assert stage.kit.stats.connects >= 2


def test_failed_listener_gives_the_connection_back(stage: Stage) -> None:
    """A ``connect`` listener that raises leaves nothing open."""

    def fail(conn: Any, record: Any) -> None:
        raise ZeroDivisionError

    event.listen(stage.engine.pool, "connect", fail)

    def work() -> None:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                stage.engine.connect()
        event.remove(stage.engine.pool, "connect", fail)
        with stage.engine.connect() as conn:
            with pytest.raises(exc.ProgrammingError):
                conn.execute(sa.text("select nonsense"))
            conn.rollback()
            assert conn.scalar(sa.text("select 1")) == 1

    stage.run(work)
    assert stage.kit.stats.in_use == 0
