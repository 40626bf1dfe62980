"""The end of a request: the outcome of COMMIT, and of work that was left open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from blocking import decorated
from support import entries

from serverless_pg_kit import CommitUnknown, Engine, TransactionFailed


def test_error_at_commit_is_told_and_the_connection_kept(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A deferred constraint that fails at COMMIT raises its own error; the session is still cleaned."""
    superuser.execute("insert into ledger values (1)")
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            conn.execute("set work_mem = '7MB'")
            conn.execute("insert into ledger values (1)")

    with pytest.raises(psycopg.errors.UniqueViolation):
        body()
    assert superuser.execute("select count(*) from ledger").fetchone() == (1,)
    with engine.request() as conn:
        assert conn.execute("show work_mem").fetchone() != ("7MB",)
    assert engine.stats.connects == 1


def cut_line(descriptor: int) -> None:
    """End a TCP connection behind the back of its owner."""
    with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as line:
        line.shutdown(socket.SHUT_RDWR)


def test_session_killed_during_commit_is_unknown(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A connection cut while COMMIT runs is the one case in which nobody can know."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            conn.execute("insert into ledger values (1)")
            # The commit waits for this trigger, which cuts the client's line instead of ending the session.
            conn.execute(
                """create or replace function cut() returns trigger language plpgsql as
                   $$ begin perform pg_sleep(0.5); return null; end $$"""
            )
            conn.execute(
                "create constraint trigger slow after insert on audit deferrable initially deferred"
                " for each row execute function cut()"
            )
            conn.execute("insert into audit values (1)")
            threading.Timer(0.2, cut_line, [conn.fileno()]).start()

    superuser.execute("drop table if exists audit; create table audit (x int); alter table audit owner to app")
    superuser.execute("grant create on schema public to app")
    with pytest.raises(CommitUnknown, match="may or may not"):
        body()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_handlers_own_commit_is_respected(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A request may commit in its midst; what follows is a new transaction of the same request."""
    engine = make_engine()
    with pytest.raises(ValueError, match="mine"), engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        conn.commit()
        conn.execute("insert into ledger values (2)")
        raise ValueError("mine")
    assert superuser.execute("select entry from ledger").fetchall() == [(1,)]


def open_copy(conn: psycopg.Connection[Any]) -> list[Any]:
    """Begin a COPY and leave it."""
    block = conn.cursor().copy("copy (select generate_series(1, 1000000)) to stdout")
    return [block, block.__enter__()]


def open_stream(conn: psycopg.Connection[Any]) -> list[Any]:
    """Begin to stream rows and leave it."""
    rows = conn.cursor().stream("select generate_series(1, 1000000)")
    return [rows, next(rows)]


def open_pipeline(conn: psycopg.Connection[Any]) -> list[Any]:
    """Begin a pipeline with a long query and leave it."""
    block = conn.pipeline()
    return [block, block.__enter__(), conn.execute("select pg_sleep(60)")]


def in_a_block(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` in the plain form of a request."""
    with engine.request() as conn:
        work(conn)


def by_hand(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` between connect() and clean()."""
    work(engine.connect())
    engine.clean()


def with_answer_404(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` in a handler that answers that something was not found."""

    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> dict[str, int]:
        work(conn)
        return {"statusCode": 404}

    decorated(engine, handler)({}, None)


@pytest.mark.parametrize("form", [in_a_block, by_hand, with_answer_404])
@pytest.mark.parametrize("leave_open", [open_copy, open_stream, open_pipeline])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_work_left_open_is_told_and_dropped(
    make_engine: Any, superuser: Any, ledger: str, leave_open: Any, form: Any
) -> None:
    """A COPY, stream or pipeline left open cannot be committed: the caller hears it, whatever it answers itself."""
    engine = make_engine()
    kept: list[Any] = []

    def work(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (1)")
        kept.append(leave_open(conn))

    with pytest.raises(TransactionFailed):
        form(engine, work)
    assert entries(superuser) == []
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 2


def test_clean_up_never_replaces_the_users_exception(make_engine: Any, superuser: Any) -> None:
    """If the rollback fails too, the user's own exception is still the one that arrives."""
    engine = make_engine()

    def body() -> None:
        with engine.request() as conn:
            superuser.execute("select pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        body()
    assert engine.stats.in_use == engine.stats.open == 0
