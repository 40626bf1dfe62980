"""The server ends connections, restarts, is full or falls silent: what SQLAlchemy's users see of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from proxy import Proxy
from sqlalchemy import exc
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_stage import Make, Stage, driver
from support import entries, kill

from serverless_pg_kit import AcquireTimeout, CommitUnknown, ConnectRejected, TooManyConnections, TransactionFailed
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_sqlalchemy.dialect import is_loss

PID = sa.text("select pg_backend_pid()")


class Base(DeclarativeBase):
    """The models of these tests."""


class Entry(Base):
    """A row of the ledger."""

    __tablename__ = "ledger"

    entry: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[PostgresServer]:
    """A server of one's own, to be restarted."""
    with PostgresServer() as running:
        yield running


@contextmanager
def full(server: PostgresServer) -> Iterator[None]:
    """Take every slot that an ordinary role can reach."""
    with ExitStack() as slots:
        with suppress(psycopg.OperationalError):
            while True:
                slots.enter_context(psycopg.connect(server.dsn))
        yield


def check_works(stage: Stage) -> None:
    """Check that the next one is served, and that nobody keeps a connection."""
    with stage.engine.connect() as conn:
        assert conn.scalar(sa.text("select 1")) == 1
    assert stage.kit.stats.in_use == 0


def test_killed_between(stage: Stage, superuser: Any) -> None:
    """A connection that was ended while it was idle is replaced before the next checkout gets it."""

    def work() -> None:
        for _ in range(3):
            with stage.engine.connect() as conn:
                pid = conn.scalar(PID)
            kill(superuser, pid)
        check_works(stage)

    stage.run(work)
    assert stage.kit.stats.connects == 4


def test_killed_during(stage: Stage, superuser: Any, ledger: str) -> None:
    """A connection that is ended during a transaction raises, says that it is invalid, and has committed nothing."""

    def work() -> None:
        with pytest.raises(exc.OperationalError) as caught, stage.engine.begin() as conn:
            conn.execute(sa.text("insert into ledger values (1)"))
            kill(superuser, driver(conn).info.backend_pid)
            conn.execute(sa.text("insert into ledger values (2)"))
        assert caught.value.connection_invalidated
        check_works(stage)

    stage.run(work)
    assert entries(superuser) == []


def test_killed_before_commit(stage: Stage, superuser: Any, ledger: str) -> None:
    """A session whose connection is ended before ``commit()`` hears of it there; rolled back, it can be used again."""

    def work() -> None:
        with Session(stage.engine) as session:
            session.add(Entry(entry=1))
            session.flush()
            kill(superuser, driver(session.connection()).info.backend_pid)
            with pytest.raises(exc.OperationalError) as caught:
                session.commit()
            assert caught.value.connection_invalidated
            session.rollback()
            session.add(Entry(entry=2))
            session.commit()
        check_works(stage)

    stage.run(work)
    assert entries(superuser) == [2]


def test_killed_while_it_was_not_used(stage: Stage, superuser: Any) -> None:
    """A connection that is ended between checkout and first statement raises at that, and not at its end."""

    def work() -> None:
        with stage.engine.connect() as conn:
            kill(superuser, driver(conn).info.backend_pid)
        with pytest.raises(exc.OperationalError), stage.engine.connect() as conn:
            kill(superuser, driver(conn).info.backend_pid)
            conn.execute(sa.text("select 1"))
        check_works(stage)

    stage.run(work)


def test_fatal_word_is_enough(stage: Stage, superuser: Any) -> None:
    """The server's last word makes a connection invalid, even if its end was not seen yet."""

    def work() -> None:
        with stage.engine.connect() as conn:
            pid = conn.scalar(PID)
            with pytest.raises(exc.OperationalError) as caught:
                conn.execute(sa.text("select pg_terminate_backend(pg_backend_pid()), pg_sleep(30)"))
            assert caught.value.connection_invalidated
            conn.rollback()
            assert conn.scalar(PID) != pid  # SQLAlchemy connects anew

    stage.run(work)


def test_restart_between_and_during(make: Make, fragile_server: PostgresServer) -> None:
    """After a restart the next one is served; whoever was in a transaction gets an error."""
    stage = make(conninfo=fragile_server.dsn, max_wait=30)

    def work() -> None:
        check_works(stage)
        fragile_server.restart()
        check_works(stage)
        with pytest.raises(exc.OperationalError) as caught, stage.engine.begin() as conn:
            conn.execute(sa.text("create table half_done (x int)"))
            fragile_server.restart("immediate")
            conn.execute(sa.text("select 1"))
        assert caught.value.connection_invalidated
        check_works(stage)
        assert not sa.inspect(stage.engine).has_table("half_done")

    stage.run(work)


def test_full_server(make: Make, tiny_server: PostgresServer) -> None:
    """Without a free slot ``connect()`` raises ``OperationalError`` after `max_wait`; with one it is served."""
    stage = make(conninfo=tiny_server.dsn, max_wait=2)

    def work() -> None:
        with full(tiny_server):
            with pytest.raises(exc.OperationalError, match=r"too many|slots") as caught:
                stage.engine.connect()
            assert isinstance(caught.value.orig, TooManyConnections)
            assert not caught.value.connection_invalidated
        check_works(stage)

    stage.run(work)


def test_full_server_during(make: Make, tiny_server: PostgresServer) -> None:
    """A session in progress keeps its connection while the server is full."""
    stage = make(conninfo=tiny_server.dsn, max_wait=2)

    def work() -> None:
        with stage.engine.connect() as conn, full(tiny_server):
            assert conn.scalar(sa.text("select 1")) == 1
            with pytest.raises(exc.OperationalError):
                stage.engine.connect()
        check_works(stage)

    stage.run(work)


def test_all_connections_in_use(make: Make) -> None:
    """Connections at once are backends of their own; beyond `max_size` one waits for `max_wait` and raises."""
    stage = make(max_size=2, max_wait=2)

    def work() -> None:
        with stage.engine.connect() as one, stage.engine.connect() as other:
            assert one.scalar(PID) != other.scalar(PID)
            with pytest.raises(exc.OperationalError, match="all 2 connections of this process") as caught:
                stage.engine.connect()
            assert isinstance(caught.value.orig, AcquireTimeout)
        check_works(stage)

    stage.run(work)
    assert stage.kit.stats.connects == 2


def test_refused(make: Make, server: PostgresServer) -> None:
    """What waiting does not cure is raised at once, with the kit's error as ``orig`` and without the password."""
    stage = make(conninfo=server.dsn_for(password="wrong-secret"))

    def work() -> None:
        with pytest.raises(exc.OperationalError) as caught:
            stage.engine.connect()
        assert isinstance(caught.value.orig, ConnectRejected)
        assert "wrong-secret" not in f"{caught.value!r} {caught.value} {stage.engine.url!r} {stage.engine!r}"

    stage.run(work)


def test_silence_during(make: Make, proxy: Proxy, server: PostgresServer) -> None:
    """On a line that fell silent a statement ends with the deadline around it, and the connection is given up."""
    stage = make(conninfo=proxy.reroute(server.dsn))
    if stage.is_async:
        pytest.skip("a deadline comes from a request around it, which is blocking here")
    check_works(stage)
    started = time.monotonic()
    error = pytest.raises(exc.OperationalError)
    with error as caught, stage.kit.scope(deadline=1.0), stage.engine.connect() as conn:
        conn.scalar(sa.text("select 1"))
        proxy.hush()
        conn.scalar(sa.text("select 1"))
    assert time.monotonic() - started < 15
    assert caught.value.connection_invalidated
    check_works(stage)


def test_losses() -> None:
    """What ends a connection is told from what does not by its kind, not by its words."""
    assert is_loss(CommitUnknown("..."))
    assert is_loss(TransactionFailed("...", lost=True))
    assert not is_loss(TransactionFailed("..."))
    assert not is_loss(AcquireTimeout("the connection was closed"))
    assert not is_loss(psycopg.errors.QueryCanceled("FATAL"))
