"""The ordinary request on a warm connection: it takes a way of its own, and nobody can tell."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg.rows
import psycopg.types.string
import pytest
from blocking import naked
from proxy import Cut, Proxy, Side
from psycopg.adapt import PyFormat
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format
from support import check_replaced_soon, entries, eventually, in_child

from serverless_pg_kit import CommitUnknown, Engine, TooManyConnections, TransactionFailed
from serverless_pg_kit.base import THAW_SECONDS
from serverless_pg_kit.closing import PREPARE_AFTER
from serverless_pg_kit.events import Reused
from serverless_pg_kit.session import BACKLOG, Baseline, drivers_names
from serverless_pg_kit.slots import OUTDATED, Slot
from serverless_pg_kit.testing import InstantClock, PostgresServer
from serverless_pg_kit.watch import GRACE

SETTLED = PREPARE_AFTER + 4
"""After so many alike requests a connection has all that the kit prepares."""

OWN_LOCKS = "locktype = 'advisory' and pid = pg_backend_pid()"
TIMEOUTS = "select current_setting('statement_timeout')::interval, current_setting('idle_session_timeout')::interval"


def settled(engine: Engine, deadline: float | None = 30.0) -> Slot:
    """Return the idle slot of `engine` after enough requests with `deadline`."""
    for _ in range(SETTLED):
        with engine.request(deadline=deadline) as conn:
            conn.execute("select 1")
    slot: Slot
    [slot] = engine._slots._idle
    assert slot.routine is not None
    assert slot.steady_until > slot.idle_since
    assert (slot.prepared_timeout is None) == (deadline is None)
    return slot


def outcome(engine: Engine, entry: int) -> bool | None:
    """Return what the caller hears of a request that writes `entry`: True or False; ``None``: that it is unknown."""
    try:
        with engine.request(deadline=30.0) as conn:
            conn.execute("insert into ledger values (%s)", [entry])
    except CommitUnknown:
        return None
    except TransactionFailed:
        return False
    return True


@pytest.mark.parametrize(("toward", "length"), [("server", 150), ("client", 160)])
def test_outcome_is_told_right_wherever_the_line_is_cut(
    make_engine: Any, proxy: Proxy, server: PostgresServer, superuser: Any, ledger: str, toward: Side, length: int
) -> None:
    """Cut inside the COMMIT and what follows it, on a connection whose messages are all prepared."""
    heard: dict[int, bool | None] = {}
    for entry, after in enumerate(range(0, length, 12)):
        engine = make_engine(conninfo=proxy.reroute(server.dsn))
        settled(engine)
        proxy.arm(Cut(after, toward, b"CLOSE ALL"))
        heard[entry] = outcome(engine, entry)
        proxy.disarm()
        assert eventually(lambda: not is_writing(superuser))
        with engine.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
        engine.close()
    written = set(entries(superuser))
    assert {entry for entry, told in heard.items() if told} <= written
    assert not {entry for entry, told in heard.items() if told is False} & written
    assert None in heard.values(), "no cut met a COMMIT"


def is_writing(superuser: psycopg.Connection[Any]) -> bool:
    """Tell whether a session of the ordinary role is still in a transaction."""
    row = superuser.execute("select from pg_stat_activity where usename = 'app' and xact_start is not null").fetchone()
    return row is not None


def run_in_commit(superuser: Any, statement: str) -> None:
    """Let the COMMIT of whoever has written into the ledger run a `statement` of PL/pgSQL, by a deferred trigger."""
    superuser.execute(
        "create or replace function late() returns trigger language plpgsql as"
        f" $body$ begin {statement}; return null; end $body$"
    )
    superuser.execute(
        "create constraint trigger late after insert on ledger deferrable initially deferred"
        " for each row execute function late()"
    )


@pytest.mark.parametrize("deadline", [None, 30.0])
@pytest.mark.parametrize(("toward", "after"), [("server", 0), ("server", 20), ("client", 0), ("client", 20)])
def test_line_that_is_cut_in_the_open_costs_a_connection_and_no_request(
    make_engine: Any,
    proxy: Proxy,
    server: PostgresServer,
    superuser: Any,
    ledger: str,
    toward: Side,
    after: int,
    deadline: float | None,
) -> None:
    """Nothing of the user's has run: the request is served on a fresh connection, once."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    settled(engine, deadline)
    cut = Cut(after, toward, b"BEGIN")
    proxy.arm(cut)
    with engine.request(deadline=deadline) as conn:
        conn.execute("insert into ledger values (1)")
    assert cut.done
    assert entries(superuser) == [1]
    assert (engine.stats.losses, engine.stats.connects, engine.stats.open) == (1, 2, 1)


def test_deadline_holds_on_what_replaces_a_lost_connection(make_engine: Any) -> None:
    """A statement that begins late on it ends with the request, not when the server's time-out for it is over."""
    engine = make_engine(max_wait=2.0)
    slot = settled(engine, 3.0)
    assert slot.routine is not None
    ends_itself = b"SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid()) --"
    timed = ends_itself + slot.routine.timeouts * b" %d"
    slot.routine = slot.routine._replace(prepared_opening=ends_itself, timed_opening=timed)
    with pytest.raises(psycopg.errors.QueryCanceled), engine.request(deadline=3.0) as conn:
        time.sleep(2 * GRACE)
        conn.execute("select pg_sleep(60)")
    assert (engine.stats.losses, engine.stats.connects, engine.stats.cancels) == (1, 2, 1)


def test_silent_line_is_replaced_soon(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A connection that lost its server without a word costs about a second."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    lost = settled(engine, None).conn
    proxy.hush()
    check_replaced_soon(engine, lost)


def test_message_larger_than_the_socket_takes_at_once(make_engine: Any) -> None:
    """The rest is sent, too, and an answer that is there by then is not waited for: here the message is long by the
    settings that every request starts from."""
    large = "x" * 400_000
    engine = make_engine(session={"kit.large": large})
    slot = settled(engine)
    with socket.socket(fileno=os.dup(slot.conn.pgconn.socket)) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for _ in range(6):
        with engine.request(deadline=30.0) as conn:
            assert conn.execute("show kit.large").fetchone() == (large,)
            conn.execute("set kit.large = ''")
    assert [slot] == engine._slots._idle
    assert engine.stats.connects == 1


def test_error_in_the_open_is_the_callers(make_engine: Any) -> None:
    """A server that refuses what the kit says is no dead one: its error is raised, and the place is free again."""
    engine = make_engine(max_size=1)
    slot = settled(engine)
    assert slot.routine is not None
    slot.routine = slot.routine._replace(prepared_opening=b"BEGIN; SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero), engine.request(deadline=30.0):
        pass
    with engine.request(deadline=30.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_interrupted_open_leaves_nothing(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the open exchange is under way: the connection is closed, and its place is free."""
    engine = make_engine(max_size=1)
    slot = settled(engine)

    def interrupt(*values: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(slot.line), "receive", interrupt)
        with pytest.raises(KeyboardInterrupt), engine.request(deadline=30.0):
            pass
    assert slot.conn.closed
    with engine.request(deadline=30.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_statements_that_are_gone_cost_an_exchange(make_engine: Any) -> None:
    """Somebody discarded them while the connection was idle: the request is served on it all the same."""
    engine = make_engine()
    slot = settled(engine)
    slot.conn.pgconn.exec_(b"DEALLOCATE ALL")
    with engine.request(deadline=30.0) as conn:
        assert conn.info.backend_pid == slot.pid
        assert conn.execute("select 1", prepare=False).fetchone() == (1,)
    assert (engine.stats.connects, engine.stats.losses, engine.stats.maintenance_failures) == (1, 0, 0)


def test_roles_are_given_back(make_engine: Any, server: PostgresServer) -> None:
    """The prepared release undoes SET ROLE and SET SESSION AUTHORIZATION, and with them what only they could set."""
    engine = make_engine(conninfo=make_conninfo(server.superuser_dsn, dbname="app"))
    settled(engine)
    who = "select session_user, current_user, current_setting('log_min_messages')"
    with engine.request() as conn:
        before = conn.execute(who).fetchone()
        conn.execute("set log_min_messages = 'panic'; set session authorization app; set role none")
        assert conn.execute(who).fetchone() == ("app", "app", "panic")
    with engine.request() as conn:
        assert conn.execute(who).fetchone() == before
        conn.execute("set role app")
    with engine.request() as conn:
        assert conn.execute(who).fetchone() == before
    assert engine.stats.connects == 1


def test_deadline_of_each_request_holds(make_engine: Any, server: PostgresServer) -> None:
    """Also of one that has another one than those before, or none."""
    engine = make_engine()
    settled(engine, 30.0)
    for deadline, least in ((30.0, 29.4), (5.05, 4.9), (5.05, 4.9), (5.05, 4.9), (30.0, 29.4), (2.2, 2.1)):
        with engine.request(deadline=deadline) as conn:
            timeout, lease = conn.execute(TIMEOUTS).fetchone()
        assert least <= timeout.total_seconds() <= deadline
        assert lease.total_seconds() == 300
    with engine.request() as conn:
        timeout, lease = conn.execute(TIMEOUTS).fetchone()
    assert (timeout.total_seconds(), lease.total_seconds()) == (0, 0)
    assert engine.stats.connects == 1


def test_timeouts_are_prepared_when_they_come_again(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A deadline like the one before makes the kit prepare its time-outs; one that comes once does not."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    settled(engine, 30.0)
    with proxy.counting() as traffic:
        for deadline in (30.0, 5.05, 30.0, 5.05, 5.05, 5.05):  # with 50 ms to spare
            with engine.request(deadline=deadline) as conn:
                conn.execute("select 1")
    opens = [query for query in traffic.queries if query.startswith("BEGIN")]
    assert ["timed_guard" in query for query in opens] == [True, False, True, False, False, True]
    assert sum("PREPARE serverless_pg_kit_timed_guard" in query for query in traffic.queries) == 1


def test_who_wants_nothing_prepared_gets_nothing(make_engine: Any) -> None:
    """`prepare_threshold = None` by `configure` holds for the time-outs, too."""
    engine = make_engine(configure=lambda conn: setattr(conn, "prepare_threshold", None))
    for _ in range(SETTLED):
        with engine.request(deadline=30.0) as conn:
            assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)


def test_without_reset_the_session_keeps_its_state(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """All of it, from one request to the next, but for what the open did: that is taken back by what is prepared."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), reset=False)
    idle = settled(engine, None).conn.pgconn
    with engine.request() as conn:
        conn.execute("create temp table kept (); set statement_timeout = '77s'; set work_mem = '7MB'")
        conn.execute("select pg_advisory_lock(42)")
    for deadline, timeouts in (
        (None, (77, 77)),
        (None, (77, 77)),
        (5.05, (4.9, 5.05)),
        (5.05, (4.9, 5.05)),
        (None, (0, 0)),
    ):
        with proxy.counting() as traffic, engine.request(deadline=deadline) as conn:
            timeout, lease = conn.execute(TIMEOUTS).fetchone()
            assert conn.execute("select current_setting('work_mem'), count(*) from kept").fetchone() == ("7MB", 0)
            assert conn.execute(f"select count(*) from pg_locks where {OWN_LOCKS}").fetchone() == (2,)
        assert traffic.exchanges == 5
        assert timeouts[0] <= timeout.total_seconds() <= timeouts[1]
        assert lease.total_seconds() == (0 if deadline is None else 300)
        assert any("EXECUTE serverless_pg_kit_release" in query for query in traffic.queries)
        assert idle.exec_(b"show idle_session_timeout").get_value(0, 0) == b"5min"
        assert idle.exec_(f"select count(*) from pg_locks where {OWN_LOCKS}".encode()).get_value(0, 0) == b"1"
    assert engine.stats.connects == 1


def test_log_that_is_turned_up_is_heard_soon(make_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody has to make the engine anew to see at level DEBUG what it does."""
    engine = make_engine()
    settled(engine)

    def is_logged() -> bool:
        with engine.request(deadline=30.0):
            pass
        return any("Reused" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.INFO, "serverless_pg_kit"):
        assert not is_logged()
    with caplog.at_level(logging.DEBUG, "serverless_pg_kit"):
        assert eventually(is_logged)


def test_listener_is_told_at_once(make_engine: Any) -> None:
    """One that is added to a warm engine hears of the very next request, and of its end."""
    engine = make_engine()
    settled(engine)
    heard: list[str] = []
    engine.add_listener(lambda event: heard.append(type(event).__name__))
    with engine.request(deadline=30.0):
        pass
    assert heard == [Reused.__name__, "Released", "Committed"]


def test_thaw_is_seen(make_engine: Any) -> None:
    """The time of day has outrun the process's own clock: that is told, and counted."""
    engine, clock = make_engine(), InstantClock()
    clock.install(engine)
    with engine.request():
        pass
    engine._history.census_at = math.inf  # nothing else gives an occasion to look
    settled(engine)
    clock.freeze(THAW_SECONDS + 0.1)
    with engine.request(deadline=30.0):
        pass
    assert engine.stats.thaws == 1


def test_counts_are_those_of_any_request(make_engine: Any) -> None:
    """What takes the short way is counted like the rest."""
    engine = make_engine()
    settled(engine)
    before = engine.stats
    for _ in range(3):
        with engine.request(deadline=30.0) as conn:
            conn.execute("select 1")
            assert engine.stats.in_use == 1
    after = engine.stats
    assert (after.reuses - before.reuses, after.commits - before.commits) == (3, 3)
    assert (after.in_use, after.open) == (0, 1)


def test_transaction_as_asked(make_engine: Any) -> None:
    """A request that wants another transaction than the usual one gets it, and the next one the usual one."""
    engine = make_engine()
    settled(engine, None)
    query = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    usual = ("read committed", "off")
    for names, expected in (
        ({"isolation_level": psycopg.IsolationLevel.SERIALIZABLE}, ("serializable", "off")),
        ({}, usual),
        ({"read_only": True}, ("read committed", "on")),
        ({}, usual),
    ):
        with engine.request(**names) as conn:
            assert conn.execute(query).fetchone() == expected
    assert engine.stats.connects == 1


def test_other_server_gets_another_connection(make_engine: Any) -> None:
    """A request that names another database is not served on the warm connection to this one."""
    engine = make_engine(max_size=2)
    settled(engine, None)
    with engine.request(conninfo="dbname=postgres") as conn:
        assert conn.execute("select current_database()").fetchone() == ("postgres",)
    for _ in range(2):
        with engine.request() as conn:
            assert conn.execute("select current_database()").fetchone() == ("app",)


def test_forked_child_opens_its_own(make_engine: Any) -> None:
    """The warm connection stays the parent's, who goes on with it."""
    engine = make_engine()
    pid = settled(engine, None).pid

    def request() -> None:
        with engine.request() as conn:
            assert conn.info.backend_pid != pid

    in_child(request)
    with engine.request() as conn:
        assert conn.execute("select pg_backend_pid()").fetchone() == (pid,)


def test_short_deadline_leaves_time_to_replace_a_silent_line(
    make_engine: Any, proxy: Proxy, server: PostgresServer
) -> None:
    """Half of what there is belongs to the old connection, the rest to a new one."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    settled(engine, None)
    proxy.hush()
    with engine.request(deadline=1.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert (engine.stats.losses, engine.stats.connects) == (1, 2)


def leave_block(conn: Any) -> Any:
    """Begin a ``transaction()`` block and leave it open."""
    block = conn.transaction()
    block.__enter__()
    conn.execute("insert into ledger values (2)")
    return block


def leave_pipeline(conn: Any) -> Any:
    """Begin a pipeline and leave it open, with nothing under way."""
    block = conn.pipeline()
    block.__enter__()
    return block


def leave_two_phases(conn: Any) -> None:
    """Begin a two-phase transaction and leave it open."""
    conn.commit()
    conn.tpc_begin("warm")
    conn.execute("insert into ledger values (2)")


@pytest.mark.parametrize("leave_open", [leave_block, leave_pipeline, leave_two_phases])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_was_left_open_is_not_committed(
    make_engine: Any, superuser: Any, ledger: str, leave_open: Callable[[Any], Any]
) -> None:
    """Half of something is nothing, and the next request has another connection."""
    engine = make_engine()
    settled(engine, None)
    kept: list[Any] = []
    with pytest.raises(TransactionFailed), engine.request() as conn:
        kept.append(leave_open(conn))
    assert entries(superuser) == []
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 2


def test_work_in_another_thread_is_not_cut_off(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A connection on which somebody still works when its request ends is neither committed nor lent again."""
    engine = make_engine()
    own = settled(engine, None).conn
    with pytest.raises(TransactionFailed), engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        taking = own.lock.acquire()  # as each statement does
        if asyncio.iscoroutine(taking):
            with pytest.raises(StopIteration):
                taking.send(None)
    own.pgconn.finish()  # an async connection is closed by whoever works on it
    assert eventually(lambda: entries(superuser) == [])


def test_what_failed_is_rolled_back(make_engine: Any, superuser: Any, ledger: str) -> None:
    """By an exception, by `fail`, or in a request that joined and whose error was caught."""
    engine = make_engine()
    settled(engine, None)
    with pytest.raises(LookupError), engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        raise LookupError
    settled(engine, None)
    with engine.scope() as scope:
        scope.connection.execute("insert into ledger values (2)")
        scope.fail()
    settled(engine, None)
    with pytest.raises(TransactionFailed), engine.request() as conn:
        conn.execute("insert into ledger values (3)")
        with contextlib.suppress(LookupError), engine.request():
            raise LookupError
    assert entries(superuser) == []
    assert engine.stats.connects == 1


def test_connection_that_died_in_the_request_is_known_not_to_have_committed(
    make_engine: Any, superuser: Any, ledger: str
) -> None:
    """A COMMIT that was never sent is not an unknown one."""
    engine = make_engine()
    settled(engine, None)
    with pytest.raises(TransactionFailed) as caught, engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        superuser.execute("select pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
    assert caught.value.lost
    assert entries(superuser) == []


def set_factory(conn: Any) -> None:
    """Let rows be dictionaries."""
    conn.row_factory = psycopg.rows.dict_row


def set_threshold(conn: Any) -> None:
    """Let psycopg prepare sooner."""
    conn.prepare_threshold = 3


def set_most(conn: Any) -> None:
    """Let psycopg prepare less."""
    conn.prepared_max = 7


def hang_on(conn: Any) -> None:
    """Keep something on the object."""
    conn.tenant = "a"


def hear_notices(conn: Any) -> None:
    """Add a handler."""
    conn.add_notice_handler(print)


def adapt(conn: Any) -> None:
    """Let numbers be texts."""
    conn.adapters.register_loader("int4", psycopg.types.string.TextLoader)


class Mark:
    """What psycopg cannot send by itself."""


class MarkDumper(psycopg.types.string.StrDumper):
    """Sends it as text, whatever the server takes that for."""

    oid = 0

    def dump(self, obj: Any) -> bytes:
        return b"mark"


class OwnTextDumper(psycopg.types.string.StrDumper):
    """Sends texts that the server has asked for."""


def adapt_class(conn: Any) -> None:
    """Let a class be sent."""
    conn.adapters.register_dumper(Mark, MarkDumper)


def adapt_oid(conn: Any) -> None:
    """Let a type of the server be sent in another way."""
    conn.adapters.register_dumper(None, OwnTextDumper)


def add_type(conn: Any) -> None:
    """Let psycopg know a type."""
    conn.adapters.types.add(psycopg.types.TypeInfo("mark", 99999, 99998))


def leave_notification(conn: Any) -> None:
    """Let a notification arrive that nobody fetches."""
    conn.execute("listen marks")
    conn.execute("notify marks")
    conn.commit()
    conn.execute("select 1")


def state_of(conn: Any) -> list[object]:
    """Return what those above change."""
    row = conn.execute("select 1 as one").fetchone()
    attributes = [conn.prepare_threshold, conn.prepared_max, getattr(conn, "tenant", None)]
    adapters = conn.adapters
    try:
        dumper = adapters.get_dumper(Mark, PyFormat.TEXT)
    except psycopg.ProgrammingError:
        dumper = None
    adaptation = [dumper, adapters.get_dumper_by_oid(OwnTextDumper.oid, Format.TEXT), adapters.types.get("mark")]
    return [row, *attributes, len(conn._notice_handlers), len(getattr(conn, BACKLOG, ())), *adaptation]


CHANGES = [
    set_factory,
    set_threshold,
    set_most,
    hang_on,
    hear_notices,
    adapt,
    adapt_class,
    adapt_oid,
    add_type,
    pytest.param(
        leave_notification,
        marks=pytest.mark.skipif(BACKLOG not in drivers_names(), reason="psycopg keeps none before 3.2.4"),
    ),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("deadline", [None, 30.0])
def test_object_is_put_back(make_engine: Any, change: Callable[[Any], None], deadline: float | None) -> None:
    """What a request changes on its warm connection is as before in the next one."""
    engine = make_engine()
    slot = settled(engine, deadline)
    with engine.request(deadline=deadline) as conn:
        before = state_of(conn)
    for _ in range(2):  # the first time more may be new to psycopg than what is meant
        with engine.request(deadline=deadline) as conn:
            change(conn)
            assert state_of(conn) != before
        for _ in range(2):
            with engine.request(deadline=deadline) as conn:
                assert state_of(conn) == before
            assert vars(slot.conn).get("wait") is slot.hook
    assert engine.stats.connects == 1


def test_object_that_was_left_alone_is_not_put_back(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands on a connection while it is watched, or not, is the kit's, and costs no more than one look."""
    engine = make_engine()
    slot = settled(engine)
    monkeypatch.delattr(Baseline, "_put_back")
    for deadline in (30.0, 30.0, None, None, 30.0):
        with engine.request(deadline=deadline) as conn:
            conn.execute("select 1")
        assert slot.hook is not None or deadline is None
    assert (engine.stats.connects, engine.stats.open) == (1, 1)


class Moody:
    """Cannot be compared with anything."""

    def __eq__(self, other: object) -> bool:
        raise ArithmeticError

    __hash__ = None  # type: ignore[assignment]


def test_what_cannot_be_compared_costs_no_commit(make_engine: Any, superuser: Any, ledger: str) -> None:
    """Whatever somebody has put on the object: the request is committed, and the next one gets another connection."""
    engine = make_engine()
    settled(engine)
    for entry in (1, 2):
        with engine.request(deadline=30.0) as conn:
            conn.execute("insert into ledger values (%s)", [entry])
            conn.row_factory = Moody()
        settled(engine)
    assert entries(superuser) == [1, 2]
    assert engine.stats.connects == 3


@pytest.mark.parametrize(
    "names",
    [{}, {"isolation_level": psycopg.IsolationLevel.SERIALIZABLE}, {"deadline": 30.0}, {"deadline": 1.5}],
    ids=["none", "none, another transaction", "long", "short"],
)
def test_deadline_ends_with_its_request(make_engine: Any, names: dict[str, Any]) -> None:
    """The next one has its own, or none, whichever way it takes to its connection."""
    engine = make_engine()
    slot = settled(engine)
    slot.watch.until = slot.watch.server_helps_until = 0.0  # as if it were long over
    with engine.request(**names) as conn:
        assert slot.hook is None or slot.watch.server_helps_until > time.monotonic()
        for _ in range(2):
            conn.execute("select pg_sleep(0.3)")
    assert (engine.stats.cancels, engine.stats.connects) == (0, 1)


def test_deadline_after_requests_without_one(make_engine: Any) -> None:
    """It ends a statement that begins late, although nobody watched over the requests before."""
    engine = make_engine()
    settled(engine, 2.2)
    for _ in range(2):
        with engine.request() as conn:
            conn.execute("select 1")
    began = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled), engine.request(deadline=2.2) as conn:
        conn.execute("select pg_sleep(0.4)")
        conn.execute("select pg_sleep(60)")
    assert 2.1 <= time.monotonic() - began < 4
    assert (engine.stats.cancels, engine.stats.connects) == (1, 1)


def test_deadline_by_another_clock(make_engine: Any) -> None:
    """An engine that is given a clock while it is warm goes by that one at once."""
    engine = make_engine()
    settled(engine)
    clock = InstantClock()
    clock.install(naked(engine))
    began = time.monotonic()
    with pytest.raises(psycopg.errors.QueryCanceled), engine.request(deadline=30.0) as conn:
        clock.advance(100.0)
        conn.execute("select pg_sleep(60)")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("names", "seconds"), [({}, 300.0), ({"max_lifetime": 60.0}, 60.0)])
def test_sleep_ends_with_lease_or_lifetime(make_engine: Any, names: dict[str, Any], seconds: float) -> None:
    """A connection is not used beyond the earlier one, by the time of day: the server may have ended it."""
    engine = make_engine(**names)
    slot = settled(engine, None)
    assert 0.85 * seconds <= slot.best_before - time.time() <= seconds


def end_well(conn: Any) -> None:
    """Do nothing."""


def fail(conn: Any) -> None:
    """Let the request roll back."""
    conn.execute("select 1")
    raise LookupError


def go_back(conn: Any) -> None:
    """Roll back to a savepoint: psycopg discards what is prepared."""
    with contextlib.suppress(LookupError), conn.transaction():
        fail(conn)


def discard(conn: Any) -> None:
    """Discard what is prepared."""
    conn.execute("deallocate all")


@pytest.mark.parametrize("end", [end_well, fail, go_back, discard])
@pytest.mark.parametrize("prepares", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_lease_is_set_however_the_request_ended(
    make_engine: Any, reset: bool, prepares: bool, end: Callable[[Any], None]
) -> None:
    """The server ends the session of a container that never comes back, whatever its last request did."""
    names = {} if prepares else {"configure": lambda conn: setattr(conn, "prepare_threshold", None)}
    engine = make_engine(reset=reset, **names)
    for _ in range(SETTLED):
        with engine.request() as conn:
            conn.execute("select 1", prepare=prepares and end is not discard)  # which psycopg may not notice
    for last in (end, end_well):
        with contextlib.suppress(LookupError), engine.request() as conn:
            last(conn)
        [slot] = engine._slots._idle
        assert slot.conn.pgconn.exec_(b"show idle_session_timeout").get_value(0, 0) == b"5min"
    assert engine.stats.connects == 1


@pytest.mark.parametrize("served", [0, SETTLED])
def test_user_that_commit_itself_changes(
    make_engine: Any, server: PostgresServer, superuser: Any, ledger: str, served: int
) -> None:
    """A deferred trigger runs after all that could be looked at: the next request is nobody else, all the same."""
    run_in_commit(superuser, "set session authorization app")
    engine = make_engine(conninfo=make_conninfo(server.superuser_dsn, dbname="app"))
    for entry in range(4):
        for _ in range(served):
            with engine.request(deadline=30.0) as conn:
                assert conn.execute("select session_user, current_user").fetchone() == ("postgres", "postgres")
        with engine.request(deadline=30.0) as conn:
            assert conn.execute("select session_user, current_user").fetchone() == ("postgres", "postgres")
            conn.execute("insert into ledger values (%s)", [entry])
    assert entries(superuser) == [0, 1, 2, 3]
    assert (engine.stats.connects, engine.stats.commits) == (1, 4 * (served + 1))


def test_user_that_configure_takes_on(make_engine: Any, server: PostgresServer) -> None:
    """It is run again after each reset, by the user who logged in: only that one may do what comes before."""

    def configure(conn: Any) -> None:
        conn.execute("set log_statement = 'none'")
        conn.execute("set session authorization app")
        conn.commit()

    engine = make_engine(conninfo=make_conninfo(server.superuser_dsn, dbname="app"), configure=configure)
    for _ in range(2 * SETTLED):
        with engine.request() as conn:
            assert conn.execute("select session_user").fetchone() == ("app",)
    assert (engine.stats.connects, engine.stats.maintenance_failures) == (1, 0)


def test_object_that_changes_in_commit_is_put_back(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A handler of the engine's own is told something while the request commits."""
    run_in_commit(superuser, "raise notice 'secret'")
    heard: list[str | None] = []

    def configure(conn: Any) -> None:
        def remember(notice: psycopg.errors.Diagnostic) -> None:
            heard.append(notice.message_primary)
            conn.last = notice.message_primary

        conn.add_notice_handler(remember)

    engine = make_engine(configure=configure)
    settled(engine)
    with engine.request(deadline=30.0) as conn:
        conn.execute("insert into ledger values (1)")
    with engine.request(deadline=30.0) as conn:
        assert getattr(conn, "last", None) is None
    assert heard == ["secret"]


def test_pipeline_behind_psycopgs_back_is_known_not_to_have_committed(make_engine: Any) -> None:
    """A COMMIT that could not be sent is not an unknown one."""
    engine = make_engine()
    settled(engine)
    with pytest.raises(TransactionFailed), engine.request(deadline=30.0) as conn:
        conn.pgconn.enter_pipeline_mode()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


class Interrupted(BaseException):
    """What ends more than a request, as a signal handler may raise it anywhere."""


class Trap:
    """Interrupts whoever compares it."""

    def __eq__(self, other: object) -> bool:
        raise Interrupted

    __hash__ = None  # type: ignore[assignment]


def test_interrupted_end_gives_the_place_back(make_engine: Any) -> None:
    """By an exception in its last moments, when it is committed: there is room for the next one."""
    engine = make_engine(max_size=1)
    settled(engine)
    with pytest.raises(Interrupted), engine.request(deadline=30.0) as conn:
        conn.row_factory = Trap()
    with engine.request(deadline=30.0) as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.in_use == 0


def outdate(engine: Engine, slot: Slot) -> None:
    """Let a request on another connection find that those of this age lost their server."""
    slot.generation = OUTDATED
    engine._look_closer()


def let_lease_end(engine: Engine, slot: Slot) -> None:
    """Let the time come at which the server ends the session."""
    slot.idle_since = 0.0
    engine._look_closer()


def be_somebody_else(engine: Engine, slot: Slot) -> None:
    """Let the credentials have changed."""
    engine._identity = b"somebody else"
    engine._look_closer()


def use_after_the_end(engine: Engine, slot: Slot) -> None:
    """Do what somebody does who has kept the connection: the server is in a transaction."""
    slot.conn.pgconn.exec_(b"BEGIN")


@pytest.mark.parametrize("happen", [outdate, let_lease_end, be_somebody_else, use_after_the_end])
def test_connection_that_may_not_serve_is_replaced(make_engine: Any, happen: Callable[[Engine, Slot], None]) -> None:
    """However warm it is, and although it would answer."""
    engine = make_engine()
    slot = settled(engine, None)
    happen(engine, slot)
    with engine.request() as conn:
        assert conn.execute("select pg_backend_pid() <> %s", [slot.pid]).fetchone() == (True,)
    assert (engine.stats.connects, engine.stats.open) == (2, 1)


def test_pressure_is_felt_at_the_next_end(make_engine: Any) -> None:
    """A refusal, and no room by the latest census: the connection is given up, and not kept for five minutes."""
    engine = make_engine(census_ttl=3600)
    slot = settled(engine, None)
    slot.born -= 10.0  # its turn is over
    history = slot.history
    history.note_refusal()
    assert history._census is not None
    history._census = history._census._replace(used=1000)
    history._counted_at = history._refused_at
    engine._look_closer()
    with engine.request() as conn:
        conn.execute("select 1")
    assert (engine.stats.yields, engine.stats.open) == (1, 0)


def test_connection_that_was_waited_for_becomes_warm(make_engine: Any) -> None:
    """A server that took a second to wake says nothing about the requests that follow, while there is room."""
    engine = make_engine()
    with engine.request():
        pass
    for slot in engine._slots._idle:
        slot.waited = 1.0
    settled(engine)


def test_census_that_is_always_due_is_always_taken(make_engine: Any) -> None:
    """With census_ttl=0 every request counts, however warm its connection."""
    engine = make_engine(census_ttl=0)
    for _ in range(SETTLED):
        with engine.request():
            pass
    before = engine.stats.censuses
    for _ in range(3):
        with engine.request():
            pass
    assert engine.stats.censuses == before + 3


def test_notification_of_its_own_commit_ends_with_the_request(make_engine: Any) -> None:
    """It arrives with the answer to COMMIT, where nothing is reset; the next request does not read it."""
    engine = make_engine(reset=False)
    slot = settled(engine, None)
    with engine.request() as conn:
        conn.execute("listen news")
        conn.execute("notify news, 'secret'")
    assert slot.conn.pgconn.notifies() is None


def test_refusal_is_felt_by_a_request_in_progress(make_engine: Any, superuser: Any) -> None:
    """A warm connection goes to sleep for a short time when the same engine was refused another one meanwhile."""
    engine = make_engine(census_ttl=3600, max_wait=0.2)
    settled(engine, None)
    superuser.execute("alter role app connection limit 0")
    try:
        with engine.request() as conn:
            conn.execute("select 1")
            with pytest.raises(TooManyConnections), engine.request(join=False):
                pass
    finally:
        superuser.execute("alter role app connection limit -1")
    assert all(slot.lease < engine.settings.lease for slot in engine._slots._idle)


def test_long_commit_has_the_time_of_its_request(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A deferred trigger goes on for longer than what every end has, and the deadline is far."""
    run_in_commit(superuser, "perform pg_sleep(1.3)")
    engine = make_engine()
    settled(engine)
    assert outcome(engine, 1)
    assert entries(superuser) == [1]


def test_cancelled_statement_is_counted(make_engine: Any) -> None:
    """One that began too late for the server's own time-out, and whose error the handler has caught."""
    engine = make_engine()
    settled(engine).history.census_at = math.inf
    with engine.request(deadline=2.5) as conn:
        conn.execute("select pg_sleep(0.4)")
        with contextlib.suppress(psycopg.errors.QueryCanceled), conn.transaction():
            conn.execute("select pg_sleep(60)")
    assert engine.stats.cancels == 1


def test_refused_write_is_its_own_requests_matter(make_engine: Any, server: PostgresServer) -> None:
    """One that the handler has caught does not make the next request, which fails for a reason of its own, look for
    another server."""
    engine = make_engine(conninfo=make_conninfo(server.dsn, options="-c default_transaction_read_only=on"))
    for _ in range(SETTLED):  # without a statement: psycopg's rollback would take the kit's away with its own
        with engine.request(deadline=30.0):
            pass
    engine._history.census_at = math.inf
    refused = contextlib.suppress(psycopg.errors.ReadOnlySqlTransaction)
    with engine.request(deadline=30.0) as conn, refused, conn.transaction():
        conn.execute("create table refused ()")
    for _ in range(2):
        with contextlib.suppress(LookupError), engine.request(deadline=30.0):
            raise LookupError
    assert engine.stats.connects == 1


def test_child_ends_the_parents_request_without_touching_it(make_engine: Any, superuser: Any, ledger: str) -> None:
    """A request that was open at the fork is the parent's to end."""
    engine = make_engine()
    settled(engine, None)
    with engine.scope() as scope:
        scope.connection.execute("insert into ledger values (1)")
        in_child(scope.end)
        assert entries(superuser) == []
        scope.connection.execute("insert into ledger values (2)")
    assert entries(superuser) == [1, 2]
