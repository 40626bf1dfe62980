"""What one request leaves on its connection never reaches the next one, which still has its prepared statements."""

from __future__ import annotations

import gc
import select
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader
from support import NOTICES_DISCARDS, entries, settable

from serverless_pg_kit import Engine, TransactionFailed
from serverless_pg_kit.closing import PREPARE_AFTER
from serverless_pg_kit.testing import PostgresServer

Conn = psycopg.Connection[Any]


def state(conn: Conn) -> tuple[Any, ...]:
    """Return all that a request could leave behind: in the session, and on psycopg's side of it."""
    [row] = conn.execute(
        """select current_user, session_user, current_setting('work_mem'), current_setting('search_path'),
                  current_setting('TimeZone'), current_setting('client_encoding'),
                  current_setting('standard_conforming_strings'), current_setting('transaction_isolation'),
                  current_setting('transaction_read_only'), current_setting('default_transaction_deferrable'),
                  current_setting('statement_timeout'), current_setting('session_replication_role'),
                  (select count(*) from pg_class where relnamespace = pg_my_temp_schema()),
                  (select count(*) from pg_proc where pronamespace = pg_my_temp_schema()),
                  (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                  (select count(*) from pg_listening_channels()), (select count(*) from pg_cursors)"""
    ).fetchall()
    return (*row, settable(conn), conn.info.encoding, list(conn.notifies(timeout=0)))


def sql(*statements: str) -> Callable[[Conn], None]:
    """Return a function that runs `statements`."""

    def run(conn: Conn) -> None:
        for statement in statements:
            conn.execute(statement.encode())

    return run


def change_attributes(conn: Conn) -> None:
    """Change what a connection object can be told."""
    conn.commit()
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True
    conn.deferrable = True
    conn.row_factory = dict_row
    conn.cursor_factory = psycopg.ClientCursor
    conn.server_cursor_factory = OwnServerCursor
    conn.prepare_threshold = None
    conn.prepared_max = 7


def change_to_autocommit(conn: Conn) -> None:
    """Take the transaction out of a request's own hands."""
    conn.commit()
    conn.autocommit = True
    conn.execute("set work_mem = '7MB'")


def leave_named_cursor(conn: Conn, **options: Any) -> None:
    """Read one row through psycopg's own server-side cursor and leave it open."""
    cursor = conn.cursor("named", **options)
    cursor.execute("select generate_series(1, 1000)")
    cursor.fetchone()


def listen_and_be_told(conn: Conn) -> None:
    """Receive a notification, so that psycopg holds it for whoever asks."""
    sql("listen news", "notify news, 'secret payload'")(conn)
    conn.commit()
    conn.execute("select 1")


class OwnServerCursor(psycopg.ServerCursor[Any]):
    """A class of one's own."""


LEFTOVERS: dict[str, Callable[[Conn], None]] = {
    "setting": sql("set work_mem = '7MB'", "set search_path = pg_temp", "set time zone 'Asia/Tokyo'"),
    "setting in a transaction": sql("set local work_mem = '7MB'"),
    "setting by function": sql("select set_config('work_mem', '7MB', false)"),
    "encoding": sql("set client_encoding = 'LATIN1'", "set standard_conforming_strings = off"),
    "timeout": sql("set statement_timeout = '77s'"),
    "kind of transactions": sql(
        "set session characteristics as transaction isolation level serializable, read only, deferrable"
    ),
    "kind of the transaction": sql("commit", "begin", "set transaction isolation level serializable, read only"),
    "role": sql("set role helper"),
    "temporary table": sql("create temp table leftover (x int)"),
    "temporary objects": sql(
        "create temp sequence leftover",
        "create function pg_temp.f() returns int return 1",
        "create temp view v as values (1)",
    ),
    "advisory lock": sql("select pg_advisory_lock(42)"),
    "advisory locks": sql(
        "select pg_advisory_lock(42), pg_advisory_lock(42)",
        "select pg_advisory_lock_shared(4, 2), pg_advisory_xact_lock(9)",
    ),
    "listen": sql("listen news", "notify news, 'secret payload'"),
    "listen and commit": sql("listen news", "commit", "notify news, 'secret payload'"),
    "notification received": listen_and_be_told,
    "cursor": sql("declare c cursor for select 1"),
    "cursor with hold": sql("declare c cursor with hold for select generate_series(1, 1000)"),
    "cursor held over a commit": sql("declare c cursor with hold for select generate_series(1, 1000)", "commit"),
    "psycopg's cursor": leave_named_cursor,
    "psycopg's cursor with hold": lambda conn: leave_named_cursor(conn, withhold=True, scrollable=True),
    "attributes": change_attributes,
    "autocommit": change_to_autocommit,
}
SUPERUSERS_LEFTOVERS: dict[str, Callable[[Conn], None]] = {
    "session authorization": sql("set session authorization helper"),
    "session authorization and role": sql("set session authorization app", "set role helper"),
    "replication role": sql("set session_replication_role = replica"),
}


ENDINGS = [("commit", 0), ("rollback", 0), ("commit", PREPARE_AFTER + 4)]
"""How a request ends, after how many others on its connection: a rollback is no routine."""


@pytest.fixture
def helper(superuser: Conn) -> None:
    """A role that the application may take on."""
    superuser.execute("drop role if exists helper")
    superuser.execute("create role helper")
    superuser.execute("grant helper to app")


def prepared(conn: Conn) -> list[Any]:
    """Return the prepared statements: their names, and when they were prepared."""
    return conn.execute("select name, prepare_time from pg_prepared_statements", prepare=False).fetchall()


def check_next_request(engine: Engine, leave: Callable[[Conn], None], ending: str, served: int) -> None:
    """Compare the state before a request that does `leave` with that after it, on the same backend, which has `served`
    so many requests before."""
    for _ in range(served):
        with engine.request():
            pass
    with engine.request() as conn:
        conn.execute("select %s::int", [1], prepare=True)
        clean, statements, pid = state(conn), prepared(conn), conn.info.backend_pid
    with engine.scope() as scope:
        leave(scope.connection)
        if ending == "rollback":
            scope.fail()
    gc.collect()
    with engine.request() as conn:
        assert conn.info.backend_pid == pid
        assert state(conn) == clean
        assert conn.execute("select %s::int", [2], prepare=True).fetchone() == (2,)
        # psycopg itself forgets what it prepared when it rolls back.
        assert ending == "rollback" or prepared(conn) == statements


@pytest.mark.parametrize(("ending", "served"), ENDINGS)
@pytest.mark.parametrize("leave", LEFTOVERS.values(), ids=LEFTOVERS)
@pytest.mark.usefixtures("helper")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_state_does_not_reach_the_next_request(
    make_engine: Any, leave: Callable[[Conn], None], ending: str, served: int
) -> None:
    """Whatever one request leaves, the next one finds the connection as at the start, and what it had prepared."""
    check_next_request(make_engine(), leave, ending, served)


@pytest.mark.parametrize(("ending", "served"), ENDINGS)
@pytest.mark.parametrize("leave", SUPERUSERS_LEFTOVERS.values(), ids=SUPERUSERS_LEFTOVERS)
@pytest.mark.usefixtures("helper")
def test_state_of_a_superuser_does_not_reach_the_next_request(
    make_engine: Any, server: PostgresServer, leave: Callable[[Conn], None], ending: str, served: int
) -> None:
    """A request that gives its privileges away does not do it for the next one."""
    check_next_request(make_engine(conninfo=make_conninfo(server.superuser_dsn, dbname="app")), leave, ending, served)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("function", ["lastval()", "currval('numbers')"])
def test_sequence_values_do_not_leak(make_engine: Any, superuser: Conn, function: str, ending: str) -> None:
    """The last value of one request's sequence is not known to the next."""
    superuser.execute("create sequence if not exists numbers; grant all on numbers to app")
    engine = make_engine()
    with engine.scope() as scope:
        scope.connection.execute("select nextval('numbers')")
        if ending == "rollback":
            scope.fail()
    with engine.request() as conn, pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState), conn.transaction():
        conn.execute(f"select {function}".encode())


def test_handlers_and_adapters_do_not_leak(make_engine: Any, superuser: Conn) -> None:
    """What one request wants to hear, and how it reads values, is not the next one's."""
    engine = make_engine()
    heard: list[Any] = []
    with engine.request() as conn:
        conn.add_notice_handler(heard.append)
        conn.add_notify_handler(heard.append)
        conn.adapters.register_loader("int4", TextLoader)
    with engine.request() as conn:
        conn.execute("do $$ begin raise notice 'x'; end $$")
        conn.execute("listen news")
        conn.commit()
        superuser.execute("notify news, 'for the second'")
        assert [notify.payload for notify in conn.notifies(timeout=5, stop_after=1)] == ["for the second"]
        assert conn.execute("select 1").fetchone() == (1,)
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


def test_role_that_is_taken_on_at_login_survives_the_reset(make_engine: Any, superuser: Conn, helper: None) -> None:
    """Where the administrator lets a role act as another from the start, every request begins as that one."""
    superuser.execute("alter role app set role = 'helper'")
    try:
        engine = make_engine()
        for _ in range(2):
            with engine.request() as conn:
                assert conn.execute("select current_user, session_user").fetchone() == ("helper", "app")
                conn.execute("reset role; set role none")
        assert engine.stats.connects == 1
    finally:
        superuser.execute("alter role app reset role")


def test_rollback_forgets_what_was_prepared(make_engine: Any, superuser: Conn) -> None:
    """Statements prepared on a table whose change was rolled back work in the next request."""
    superuser.execute("drop table if exists shape; create table shape (a int); alter table shape owner to app")
    engine = make_engine()
    with engine.scope() as scope:
        scope.connection.execute("alter table shape add b int")
        scope.connection.execute("select * from shape", prepare=True)
        scope.fail()
    for _ in range(2):
        with engine.request() as conn:
            assert conn.execute("select * from shape", prepare=True).fetchall() == []
    assert engine.stats.connects == 1


def discard_all(conn: Conn) -> None:
    """Do by hand what PgBouncer does."""
    conn.commit()
    conn.autocommit = True
    conn.execute("discard all")


def close_twice(conn: Conn) -> None:
    """Close what the engine would close, and once more."""
    conn.close()
    conn.close()


def use_with_block(conn: Conn) -> None:
    """Do what programs with a connection of their own do: the end of the block commits and closes."""
    with conn:
        conn.execute("select 1")


def cancel_safely(conn: Conn) -> None:
    """Cancel what does not run, as libpq 17 does it."""
    conn.cancel_safe(timeout=5)


HABITS: dict[str, tuple[Callable[[Conn], object], list[int]]] = {
    "closed": (lambda conn: conn.close(), []),
    "closed twice": (close_twice, []),
    "with block": (use_with_block, [1]),
    "committed": (lambda conn: conn.commit(), [1]),
    "committed by SQL": (sql("commit"), [1]),
    "committed by SQL, and a new one begun": (sql("commit and chain", "select 1"), [1]),
    "rolled back": (lambda conn: conn.rollback(), []),
    "rolled back by SQL": (sql("rollback", "select 1"), []),
    "savepoint": (sql("savepoint a", "savepoint b"), [1]),
    "table lock": (sql("lock table ledger"), [1]),
    "guard given up": (sql("select pg_advisory_unlock_all()"), [1]),
    "guard given up and committed": (sql("select pg_advisory_unlock_all()", "commit"), [1]),
    "prepared statements dropped": (sql("deallocate all"), [1]),
    "reset by hand": (discard_all, [1]),
    "cancelled": (lambda conn: conn.cancel(), [1]),
    "cancelled safely": (cancel_safely, [1]),
}


if not NOTICES_DISCARDS:
    del HABITS["prepared statements dropped"], HABITS["reset by hand"]


@pytest.mark.parametrize(("habit", "kept"), HABITS.values(), ids=HABITS)
def test_habits_do_not_hurt_the_next_request(
    make_engine: Any, superuser: Conn, ledger: str, habit: Any, kept: list[int]
) -> None:
    """Handlers that end, close or cancel by themselves get what they asked for, and so does the next request."""
    engine = make_engine()
    for _ in range(2):  # the second time the statements are prepared already
        superuser.execute("truncate ledger")
        with engine.request() as conn:
            conn.execute("insert into ledger values (%s)", [1], prepare=True)
            habit(conn)
        assert entries(superuser) == kept
        with engine.request() as conn:
            conn.execute("insert into ledger values (%s)", [2], prepare=True)
        assert entries(superuser) == [*kept, 2]
    assert engine.stats.in_use == 0


def unfinished(conn: Conn) -> Iterator[None]:
    """A generator that is left inside a transaction() block."""
    with conn.transaction():
        conn.execute("select 1")
        yield


@pytest.mark.parametrize("end", ["kept", "collected in the next request", "collected before"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_unfinished_transaction_block_does_not_reach_the_next_request(
    make_engine: Any, superuser: Conn, ledger: str, end: str
) -> None:
    """A transaction() block that was never left is not committed, and cannot abort the next request, whenever it is
    collected."""
    engine = make_engine()
    conn = engine.connect()
    conn.execute("insert into ledger values (1)")
    blocks = [unfinished(conn)]
    next(blocks[0])
    with pytest.raises(TransactionFailed):
        engine.clean()
    if end == "collected before":
        blocks.clear()
        gc.collect()
    with engine.request() as other:
        assert other is not conn
        other.execute("insert into ledger values (2)")
        if end == "collected in the next request":
            blocks.clear()
            gc.collect()
    assert entries(superuser) == [2]


@pytest.fixture(scope="module")
def two_phase_server() -> Iterator[PostgresServer]:
    """A server that keeps prepared transactions."""
    with PostgresServer(settings={"max_prepared_transactions": 5}, max_connections=10) as running:
        with psycopg.connect(running.dsn) as conn:
            conn.execute("create table parcels (number int)")
        yield running


@pytest.fixture
def no_parcels(two_phase_server: PostgresServer) -> None:
    """Nothing is left of tests before."""
    with psycopg.connect(two_phase_server.dsn, autocommit=True) as conn:
        conn.execute("truncate parcels")


def parcels(server: PostgresServer) -> list[int]:
    """Return what is committed."""
    with psycopg.connect(server.dsn) as conn:
        return [number for (number,) in conn.execute("select number from parcels order by 1")]


def begin_two_phases(conn: Conn, number: int) -> psycopg.Xid:
    """Begin a two-phase transaction and insert a row in it."""
    conn.commit()
    xid = conn.xid(1, f"parcel {number}", "")
    conn.tpc_begin(xid)
    conn.execute("insert into parcels values (%s)", [number])
    return xid


@pytest.mark.usefixtures("no_parcels")
def test_two_phases_within_a_request(engines: Any, two_phase_server: PostgresServer) -> None:
    """A request may commit in two phases; its connection serves the next one."""
    engine = engines(conninfo=two_phase_server.dsn)
    with engine.request() as conn:
        begin_two_phases(conn, 1)
        conn.tpc_prepare()
        conn.tpc_commit()
    with engine.request() as other:
        assert other is conn
        assert other.execute("select 1 from parcels where number = 1").fetchone() == (1,)


@pytest.mark.usefixtures("no_parcels")
def test_prepared_transaction_outlives_its_request(engines: Any, two_phase_server: PostgresServer) -> None:
    """What a request has prepared is neither committed nor rolled back by it, and another request can finish it."""
    engine = engines(conninfo=two_phase_server.dsn)
    with engine.request() as conn:
        xid = begin_two_phases(conn, 2)
        conn.tpc_prepare()
    assert 2 not in parcels(two_phase_server)
    with engine.request() as other:
        assert other is not conn
        assert [str(each) for each in other.tpc_recover()] == [str(xid)]
        other.commit()
        other.tpc_commit(xid)
    assert 2 in parcels(two_phase_server)


@pytest.mark.usefixtures("no_parcels")
def test_two_phases_that_failed_are_rolled_back(engines: Any, two_phase_server: PostgresServer) -> None:
    """An exception before the first phase leaves nothing on the server, and the next request works."""
    engine = engines(conninfo=two_phase_server.dsn)
    with pytest.raises(ValueError, match="mine"), engine.request() as conn:
        begin_two_phases(conn, 3)
        raise ValueError("mine")
    with engine.request() as conn:
        assert conn.tpc_recover() == []
    assert 3 not in parcels(two_phase_server)


def test_two_phases_that_were_not_prepared_are_not_committed(engines: Any, two_phase_server: PostgresServer) -> None:
    """Who begins a transaction in two phases leaves it to another to decide: it is not committed in one, and told."""
    engine = engines(conninfo=two_phase_server.dsn)
    with pytest.raises(psycopg.Error), engine.request() as conn:
        begin_two_phases(conn, 4)
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert 4 not in parcels(two_phase_server)


def test_unread_notification_is_nobodys(make_engine: Any, superuser: Conn) -> None:
    """What arrives for a request that does not read it any more is not there for the next one."""
    engine = make_engine()
    with engine.request() as conn:
        conn.execute("listen news")
        conn.commit()
        superuser.execute("notify news, 'secret payload'")
        assert select.select([conn], [], [], 5)[0]  # it has arrived, and nobody has read it
    superuser.execute("notify news, 'another one'")
    with engine.request() as other:
        assert other is conn
        other.execute("select 1")  # with its answer psycopg takes over what libpq holds
        assert list(other.notifies(timeout=0)) == []
