"""The end of a request: the outcome of COMMIT, and what the next request must not see."""

from __future__ import annotations

import socket
import threading
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader

from serverless_pg_kit import CommitUnknown, TransactionFailed
from serverless_pg_kit.testing import PostgresServer


def state(conn: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Return the session state that a request could leave behind."""
    [row] = conn.execute(
        """select current_user, session_user, current_setting('work_mem'), current_setting('search_path'),
                  current_setting('TimeZone'),
                  (select count(*) from pg_class where relpersistence = 't' and relname = 'leftover'
                     and pg_table_is_visible(oid)),
                  (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                  (select count(*) from pg_listening_channels()), (select count(*) from pg_cursors)"""
    ).fetchall()
    return tuple(row)


LEFTOVERS = {
    "setting": ["set work_mem = '7MB'", "set search_path = pg_temp", "set time zone 'Asia/Tokyo'"],
    "setting in a transaction": ["set local work_mem = '7MB'"],
    "role": ["set role helper"],
    "temporary table": ["create temp table leftover (x int)"],
    "advisory lock": ["select pg_advisory_lock(42)"],
    "listen": ["listen news", "notify news, 'secret payload'"],
    "cursor": ["declare c cursor for select 1"],
    "cursor with hold": ["declare c cursor with hold for select generate_series(1, 1000)"],
}


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("statements", LEFTOVERS.values(), ids=LEFTOVERS)
def test_session_state_does_not_reach_the_next_request(
    make_engine: Any, superuser: Any, statements: list[str], ending: str
) -> None:
    """Whatever one request leaves in the session, the next one finds it as at the start."""
    superuser.execute("drop role if exists helper")
    superuser.execute("create role helper")
    superuser.execute("grant helper to app")
    engine = make_engine()
    with engine.request() as conn:
        clean = state(conn)
        pid = conn.info.backend_pid
    with engine.scope() as scope:
        for statement in statements:
            scope.connection.execute(statement)
        if ending == "rollback":
            scope.fail()
    with engine.request() as conn:
        assert state(conn) == clean
        assert conn.info.backend_pid == pid
        assert list(conn.notifies(timeout=0)) == []


def test_sequence_values_do_not_leak(make_engine: Any, superuser: Any) -> None:
    """The last value of one request's sequence is not known to the next."""
    superuser.execute("create sequence if not exists numbers; grant all on numbers to app")
    engine = make_engine()
    with engine.request() as conn:
        conn.execute("select nextval('numbers')")
    with engine.request() as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), conn.transaction():
        conn.execute("select lastval()")


def test_attributes_of_the_connection_do_not_leak(make_engine: Any) -> None:
    """psycopg's own side is put back too: factories, autocommit, isolation, handlers, adapters."""
    engine = make_engine()
    heard: list[Any] = []
    with engine.request() as conn:
        conn.commit()
        conn.autocommit = True
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.row_factory = dict_row
        conn.cursor_factory = psycopg.ClientCursor
        conn.prepare_threshold = None
        conn.add_notice_handler(heard.append)
        conn.adapters.register_loader("int4", TextLoader)
    with engine.request() as conn:
        assert (conn.autocommit, conn.isolation_level, conn.read_only) == (False, None, None)
        assert conn.execute("select 1").fetchone() == (1,)
        assert conn.cursor_factory is psycopg.Cursor
        assert conn.prepare_threshold == 5
        conn.execute("do $$ begin raise notice 'x'; end $$")
    assert heard == []


def test_configured_attributes_are_what_requests_start_from(make_engine: Any) -> None:
    """`configure` runs once on each connection, and what it set survives every reset."""
    configured: list[psycopg.Connection[Any]] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        configured.append(conn)
        conn.row_factory = dict_row

    engine = make_engine(configure=configure)
    for _ in range(3):
        with engine.request() as conn:
            assert conn.execute("select 1 as one").fetchone() == {"one": 1}
            conn.row_factory = tuple_row
    assert len(configured) == 1


def test_prepared_statements_survive(make_engine: Any) -> None:
    """The reset does not cost the next request its prepared statements."""
    engine = make_engine()
    with engine.request() as conn:
        conn.execute("select %s::int", [1], prepare=True)
    with engine.request() as conn:
        assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (1,)
        assert conn.execute("select %s::int", [2], prepare=True).fetchone() == (2,)


def test_reset_can_be_switched_off(make_engine: Any) -> None:
    """With `reset=False` the session keeps its state, but not the guard and the deadline of the request."""
    engine = make_engine(reset=False)
    with engine.request(deadline=5) as conn:
        conn.execute("set work_mem = '7MB'")
    with engine.request() as conn:
        assert conn.execute("show work_mem").fetchone() == ("7MB",)
        assert conn.execute("show statement_timeout").fetchone() == ("0",)
        held = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        assert conn.execute(held).fetchone() == (1,)


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


def discard_all(conn: psycopg.Connection[Any]) -> None:
    """Do by hand what PgBouncer does."""
    conn.commit()
    conn.autocommit = True
    conn.execute("discard all")


ODD_HABITS = {
    "closed": lambda conn: conn.close(),
    "with block": lambda conn: conn.__enter__().execute("select 1") and conn.__exit__(None, None, None),
    "guard given up": lambda conn: conn.execute("select pg_advisory_unlock_all()"),
    "guard given up and committed": lambda conn: (conn.execute("select pg_advisory_unlock_all()"), conn.commit()),
    "rolled back": lambda conn: conn.rollback(),
    "reset by hand": discard_all,
}


@pytest.mark.parametrize("habit", ODD_HABITS.values(), ids=ODD_HABITS)
def test_odd_habits_do_not_hurt_the_next_request(make_engine: Any, habit: Any) -> None:
    """Handlers that close, roll back or unlock by themselves end well, and so does the next request."""
    engine = make_engine()
    with engine.request() as conn:
        habit(conn)
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.in_use == 0


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


@pytest.mark.parametrize("leave_open", [open_copy, open_stream, open_pipeline])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_work_left_open_is_told_and_dropped(make_engine: Any, leave_open: Any) -> None:
    """A COPY, stream or pipeline left open cannot be committed: the caller hears it, the connection goes."""
    engine = make_engine()
    kept: list[Any] = []

    def body() -> None:
        with engine.request() as conn:
            kept.append(leave_open(conn))

    with pytest.raises(TransactionFailed):
        body()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 2


def test_unfinished_transaction_block_is_dropped(make_engine: Any) -> None:
    """A transaction() block that was never left cannot abort the next request."""
    engine = make_engine()
    with engine.request() as conn:
        block = conn.transaction()
        block.__enter__()
    with engine.request() as other:
        assert other is not conn
        assert other.execute("select 1").fetchone() == (1,)


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


def test_role_defaults_survive_the_reset(make_engine: Any, superuser: Any, server: PostgresServer) -> None:
    """RESET goes back to what the role and the connection string say, not to the server's bare defaults."""
    superuser.execute("alter role app set work_mem = '9MB'")
    try:
        conninfo = make_conninfo(server.dsn, options="-c lock_timeout=77s")
        engine = make_engine(conninfo=conninfo)
        for _ in range(2):
            with engine.request() as conn:
                assert conn.execute("show work_mem").fetchone() == ("9MB",)
                assert conn.execute("show lock_timeout").fetchone() == ("77s",)
                conn.execute("set work_mem = '7MB'")
    finally:
        superuser.execute("alter role app reset work_mem")
