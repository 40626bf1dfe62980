"""Transactions, isolation and sessions work as SQLAlchemy documents them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy_stage import Make, Stage, awaited, driver
from support import entries

from serverless_pg_kit.testing import PostgresServer

INSERT = sa.text("insert into ledger values (:entry)")


class Base(DeclarativeBase):
    """The models of these tests."""


class Entry(Base):
    """A row of the ledger."""

    __tablename__ = "ledger"

    entry: Mapped[int] = mapped_column(primary_key=True)


def insert(conn: sa.Connection, *numbers: int) -> None:
    """Insert entries."""
    for number in numbers:
        conn.execute(INSERT, {"entry": number})


@pytest.fixture(params=["rollback", "commit", None])
def reset(request: pytest.FixtureRequest) -> Any:
    """The values of ``pool_reset_on_return``."""
    return request.param


def test_begin_commits_and_rolls_back(stage: Stage, superuser: Any, ledger: str) -> None:
    """``engine.begin()`` commits on success and rolls back on an exception."""

    def work() -> None:
        with stage.engine.begin() as conn:
            insert(conn, 1)
        with pytest.raises(ZeroDivisionError), stage.engine.begin() as conn:
            insert(conn, 2)
            raise ZeroDivisionError

    stage.run(work)
    assert entries(superuser) == [1]
    assert stage.kit.stats.connects == 1


def test_connection_commits_as_it_goes(stage: Stage, superuser: Any, ledger: str) -> None:
    """On one connection each ``commit()`` keeps, each ``rollback()`` drops, and its end drops what is left."""

    def work() -> None:
        with stage.engine.connect() as conn:
            insert(conn, 1)
            conn.commit()
            insert(conn, 2)
            conn.rollback()
            with conn.begin():
                insert(conn, 3)
            insert(conn, 4)

    stage.run(work)
    assert entries(superuser) == [1, 3]


def test_savepoints(stage: Stage, superuser: Any, ledger: str) -> None:
    """``begin_nested()`` undoes its own part alone."""

    def work() -> None:
        with stage.engine.begin() as conn:
            insert(conn, 1)
            with conn.begin_nested() as nested:
                insert(conn, 2)
                nested.rollback()
            with conn.begin_nested():
                insert(conn, 3)

    stage.run(work)
    assert entries(superuser) == [1, 3]


def test_uncommitted_is_ended_as_the_option_says(make: Make, superuser: Any, ledger: str, reset: Any) -> None:
    """``pool_reset_on_return`` decides about what a connection from ``raw_connection()`` leaves open; at the latest
    the kit rolls it back."""
    stage = make({"pool_reset_on_return": reset})

    def work() -> None:
        raw = stage.engine.raw_connection()
        raw.cursor().execute("insert into ledger values (1)")
        raw.close()
        with stage.engine.connect() as conn:
            assert conn.scalar(sa.text("select count(*) from ledger")) == (1 if reset == "commit" else 0)

    stage.run(work)
    assert stage.kit.stats.connects == 1


def test_orm_session(stage: Stage, superuser: Any, ledger: str) -> None:
    """An ORM session commits, rolls back, and gives its connection back at both."""

    def work() -> None:
        with Session(stage.engine) as session:
            session.add(Entry(entry=1))
            session.commit()
            assert stage.kit.stats.in_use == 0
            session.add(Entry(entry=2))
            session.flush()
            assert stage.kit.stats.in_use == 1
            session.rollback()
            assert stage.kit.stats.in_use == 0
            assert session.scalars(sa.select(Entry.entry)).all() == [1]

    stage.run(work)
    assert entries(superuser) == [1]


def test_scoped_session(stage: Stage, superuser: Any, ledger: str) -> None:
    """``scoped_session.remove()`` rolls back and gives the connection back."""

    def work() -> None:
        session = scoped_session(sessionmaker(stage.engine))
        session.add(Entry(entry=1))
        session.commit()
        session.add(Entry(entry=2))
        session.flush()
        session.remove()

    stage.run(work)
    assert entries(superuser) == [1]
    assert stage.kit.stats.in_use == 0


def test_autocommit_of_a_connection(stage: Stage, superuser: Any, ledger: str) -> None:
    """``execution_options(isolation_level="AUTOCOMMIT")`` is for that connection only."""

    def work() -> None:
        with stage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            insert(conn, 1)
            assert entries(superuser) == [1]
            conn.execute(sa.text("vacuum pg_class"))
        with stage.engine.connect() as conn:
            insert(conn, 2)
            assert entries(superuser) == [1]

    stage.run(work)
    assert entries(superuser) == [1]


def test_autocommit_of_the_engine(make: Make, superuser: Any, ledger: str) -> None:
    """``create_engine(isolation_level="AUTOCOMMIT")`` commits each statement; a connection may ask for more."""
    stage = make({"isolation_level": "AUTOCOMMIT"})

    def work() -> None:
        with stage.engine.connect() as conn:
            insert(conn, 1)
            assert entries(superuser) == [1]
        with stage.engine.connect().execution_options(isolation_level="SERIALIZABLE") as conn:
            insert(conn, 2)
            assert conn.get_isolation_level() == "SERIALIZABLE"

    stage.run(work)
    assert entries(superuser) == [1]


@pytest.mark.parametrize("is_engines", [True, False])
def test_isolation_level(make: Make, is_engines: bool) -> None:
    """The isolation level of an engine or of a connection holds for each of its transactions, and for no other's."""
    option = {"isolation_level": "REPEATABLE READ"}
    stage = make(option if is_engines else None)
    show = sa.text("show transaction_isolation")

    def work() -> None:
        with stage.engine.connect().execution_options(**option) as conn:
            for _ in range(2):
                assert conn.scalar(show) == "repeatable read"
                conn.rollback()
        with stage.engine.connect() as conn:
            assert conn.scalar(show) == ("repeatable read" if is_engines else "read committed")

    stage.run(work)


def test_isolation_level_can_be_asked_for_and_then_set(stage: Stage) -> None:
    """``get_isolation_level()`` leaves an idle connection idle."""

    def work() -> None:
        with stage.engine.connect() as conn:
            assert conn.get_isolation_level() == "READ COMMITTED"
            conn.execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True)
            assert conn.scalar(sa.text("show transaction_isolation")) == "serializable"
            assert conn.scalar(sa.text("show transaction_read_only")) == "on"

    stage.run(work)


def test_engine_of_the_kit_in_autocommit(make: Make, superuser: Any, ledger: str) -> None:
    """The setting ``autocommit`` says how the kit gives connections out; SQLAlchemy has transactions all the same."""
    stage = make(autocommit=True)

    def work() -> None:
        with stage.engine.connect() as conn:
            insert(conn, 1)

    stage.run(work)
    assert entries(superuser) == []


@pytest.fixture(scope="module")
def preparing_server() -> Iterator[PostgresServer]:
    """A server that admits prepared transactions."""
    with PostgresServer(settings={"max_prepared_transactions": 5}) as running:
        yield running


def test_two_phase(make: Make, preparing_server: PostgresServer) -> None:
    """``begin_twophase()`` prepares and commits; what was prepared and left can be ended by another connection."""
    stage = make(conninfo=preparing_server.dsn)

    def work() -> None:
        with stage.engine.connect() as conn:
            with conn.begin_twophase("done") as transaction:
                assert conn.scalar(sa.text("select 1")) == 1
                transaction.prepare()
            conn.begin_twophase("left").prepare()
            conn.invalidate()
        with stage.engine.connect() as conn:
            assert conn.recover_twophase() == ["left"]
            conn.rollback_prepared("left", recover=True)
            assert conn.recover_twophase() == []

    stage.run(work)


def test_server_side_cursor(stage: Stage) -> None:
    """A result that is streamed comes in parts, through a cursor on the server."""

    def work() -> None:
        series, cursors = sa.select(sa.func.generate_series(1, 100000)), sa.text("select count(*) from pg_cursors")
        with stage.engine.connect() as conn:
            result = conn.execute(series, execution_options={"yield_per": 1000})
            assert len(next(result.partitions())) == 1000
            assert conn.scalar(cursors) == 1
            result.close()
        with stage.engine.connect() as conn:
            assert conn.scalar(cursors) == 0

    stage.run(work)
    assert stage.kit.stats.connects == 1


def test_copy_over_the_drivers_connection(stage: Stage, superuser: Any, ledger: str) -> None:
    """``driver_connection`` is psycopg's own connection, in SQLAlchemy's transaction."""

    async def copy(conn: psycopg.AsyncConnection[Any]) -> None:
        async with conn.cursor().copy("copy ledger from stdin") as stream:
            await stream.write_row([1])

    def work() -> None:
        with stage.engine.begin() as conn:
            lent = driver(conn)
            if isinstance(lent, psycopg.AsyncConnection):
                awaited(copy(lent))
            else:
                assert isinstance(lent, psycopg.Connection)
                with lent.cursor().copy("copy ledger from stdin") as stream:
                    stream.write_row([1])
            insert(conn, 2)
            assert entries(superuser) == []

    stage.run(work)
    assert entries(superuser) == [1, 2]


def test_drivers_own_transaction_block(stage: Stage, superuser: Any, ledger: str) -> None:
    """On a raw connection psycopg's ``transaction()`` commits by itself, as on an idle connection of psycopg."""

    async def block(conn: psycopg.AsyncConnection[Any]) -> None:
        async with conn.transaction():
            await conn.execute("insert into ledger values (1)")

    def work() -> None:
        raw = stage.engine.raw_connection()
        lent = raw.driver_connection
        if isinstance(lent, psycopg.AsyncConnection):
            awaited(block(lent))
        else:
            assert isinstance(lent, psycopg.Connection)
            with lent.transaction():
                lent.execute("insert into ledger values (1)")
        raw.close()

    stage.run(work)
    assert entries(superuser) == [1]


def test_nothing_of_a_session_is_left(stage: Stage) -> None:
    """Settings, temporary tables and roles of one checkout are gone in the next, which has the same connection."""

    def work() -> None:
        with stage.engine.connect() as conn:
            pid = conn.scalar(sa.text("select pg_backend_pid()"))
            conn.execute(sa.text("create temp table scrap (x int)"))
            conn.execute(sa.text("set work_mem = '77MB'"))
            conn.commit()
            assert conn.scalar(sa.text("select count(*) from scrap")) == 0
            assert conn.scalar(sa.text("show work_mem")) == "77MB"
        with stage.engine.connect() as conn:
            assert conn.scalar(sa.text("select to_regclass('scrap')")) is None
            assert conn.scalar(sa.text("show work_mem")) != "77MB"
            assert conn.scalar(sa.text("select pg_backend_pid()")) == pid

    stage.run(work)
