"""Time: what a request may take, what its end leaves of that, and what is seen of clocks, freezes and dead servers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from psycopg import generators
from psycopg.pq import ExecStatus
from support import NOTICES_DISCARDS, SYNC_ONLY, check_replaced_soon, eventually

from serverless_pg_kit import AcquireTimeout, Engine, line
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.closing import PREPARE_AFTER
from serverless_pg_kit.events import Event, HeldUnused, Thawed
from serverless_pg_kit.testing import PostgresServer

MORE_THAN_BUFFERS_HOLD = 20_000_000
"""Bytes on their way between a client and a server."""


class Hands:
    """Clocks that stand still until they are moved; sleeping moves them."""

    def __init__(self) -> None:
        self.wall = 1e9
        self.monotonic = 50.0

    def drive(self, engine: Engine) -> None:
        """Let `engine` live by these clocks; to be called before its first request."""
        engine._clock = Clock(monotonic=lambda: self.monotonic, wall=lambda: self.wall, sleep=self.move)
        engine._start()

    def move(self, seconds: float) -> None:
        """Let time pass."""
        self.monotonic += seconds
        self.wall += seconds


@pytest.fixture
def hands() -> Hands:
    """Clocks that stand still."""
    return Hands()


def timeouts_at_rest(engine: Engine) -> dict[str, str]:
    """Return the time-outs that are in force in the engine's sleeping session itself, other than its lease."""
    [idle] = engine._slots._idle
    query = b"""select name, setting from pg_settings where setting <> '0' and name in ('statement_timeout',
                'idle_in_transaction_session_timeout', 'transaction_timeout', 'lock_timeout')"""
    rows = idle.conn.pgconn.exec_(query)
    texts = [[(rows.get_value(row, column) or b"").decode() for column in (0, 1)] for row in range(rows.ntuples)]
    return {name: setting for name, setting in texts}


def check_works(engine: Engine) -> None:
    """Check that the next request is served, with no time-out left over."""
    with engine.request() as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)
    assert timeouts_at_rest(engine) == {}


def errors_at_the_deadline(server: PostgresServer) -> tuple[type[psycopg.Error], ...]:
    """Return what a handler may hear at its deadline: from 17 on the server may have to end the session."""
    canceled = psycopg.errors.QueryCanceled
    return (canceled, psycopg.errors.TransactionTimeout) if server.version >= 17 else (canceled,)


def test_statement_that_begins_late_is_cancelled_in_time(make_engine: Any, server: PostgresServer) -> None:
    """A statement gets what is left of the request, not its whole time anew; the handler hears of it at the deadline,
    and the next request works."""
    engine = make_engine()
    check_works(engine)
    started = time.monotonic()
    with pytest.raises(errors_at_the_deadline(server)), engine.request(deadline=2.0) as conn:
        conn.execute("select pg_sleep(1.8)")
        conn.execute("select pg_sleep(30)")
    assert 1.95 < time.monotonic() - started < 3.7
    check_works(engine)


def test_statement_on_a_line_that_fell_silent_ends_with_the_request(
    make_engine: Any, proxy: Proxy, server: PostgresServer
) -> None:
    """The server's own time-out cannot be heard of there: nobody waits for TCP to give up."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError), engine.request(deadline=0.5) as conn:
        proxy.hush(newcomers=True)
        conn.execute("select 1")
    assert time.monotonic() - started < 3.0
    assert engine.stats.open == 0


def test_statement_that_is_not_taken_ends_with_the_request(make_engine: Any) -> None:
    """A backend that stands still does not even read what is sent: that is waited for until the deadline as well."""
    engine = make_engine()
    stopped: list[int] = []
    started = time.monotonic()
    try:
        with pytest.raises(psycopg.OperationalError), engine.request(deadline=0.7) as conn:
            stopped.append(conn.info.backend_pid)
            os.kill(stopped[0], signal.SIGSTOP)
            conn.execute("select length(%s)", ["x" * MORE_THAN_BUFFERS_HOLD])
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    assert 0.6 < time.monotonic() - started < 3.0
    assert engine.stats.open == 0


def test_late_statement_is_cancelled_with_an_old_libpq_too(
    make_engine: Any, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can only block while it cancels does so where it holds nobody."""
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda check=False: False)
    engine = make_engine()
    with pytest.raises(errors_at_the_deadline(server)), engine.request(deadline=0.6) as conn:
        conn.execute("select pg_sleep(0.3)")
        conn.execute("select pg_sleep(5)")


@pytest.mark.parametrize("bounded", [True, False])
def test_statement_that_meets_the_deadline_is_told_from_when_it_began(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, bounded: bool
) -> None:
    """Whether psycopg's own waiting takes a time-out or not: by its begin it is decided who cancels it."""
    if not bounded:
        monkeypatch.setattr(line, "WaitTimeout", None)
    looks: list[float] = []
    heard: list[float] = []

    def now() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    def late(begun: float) -> float:
        heard.extend([begun, looks[-1]])
        conn.cancel()
        return now() + 10

    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.pgconn.send_query(b"select pg_sleep(30)")
        until = time.monotonic() + 0.3
        [result] = line.Line(conn).wait(generators.execute(conn.pgconn), until, now, late)
    assert result.status == ExecStatus.FATAL_ERROR
    begun, told = heard
    assert begun == looks[0]
    assert told >= until


@SYNC_ONLY
def test_statement_with_a_deadline_can_be_interrupted(make_engine: Any) -> None:
    """By a signal, such as Ctrl-C's, long before the deadline."""
    engine = make_engine()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    alarm = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1])
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt), engine.request(deadline=20.0) as conn:
            alarm.start()
            conn.execute("select pg_sleep(15)")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert time.monotonic() - started < 2.5
    assert engine.stats.in_use == 0


def test_many_short_statements_end_at_the_deadline(make_engine: Any, server: PostgresServer) -> None:
    """A loop of statements, each of them quick, does not go on for ever either."""
    engine = make_engine()
    check_works(engine)
    started = time.monotonic()
    with pytest.raises(errors_at_the_deadline(server)), engine.request(deadline=1.0) as conn:
        while time.monotonic() - started < 10:
            conn.execute("select pg_sleep(0.05)")
    assert time.monotonic() - started > 0.95
    check_works(engine)


@pytest.mark.parametrize("autocommit", [True, False])
def test_statement_that_begins_late_in_another_transaction_is_cancelled_in_time(
    make_engine: Any, server: PostgresServer, autocommit: bool
) -> None:
    """Also in a request of several transactions, its own ones or those of autocommit, the last statement gets what is
    left of the whole request."""
    engine = make_engine(autocommit=autocommit)
    check_works(engine)
    started = time.monotonic()
    with pytest.raises(errors_at_the_deadline(server)), engine.request(deadline=2.0) as conn:
        conn.execute("select pg_sleep(1.8)")
        conn.commit()
        conn.execute("select pg_sleep(30)")
    assert 1.95 < time.monotonic() - started < 3.7
    check_works(engine)


@pytest.mark.parametrize("autocommit", [True, False])
def test_many_short_transactions_end_at_the_deadline(
    make_engine: Any, server: PostgresServer, autocommit: bool
) -> None:
    """A loop of transactions, each of them quick, does not go on for ever either."""
    engine = make_engine(autocommit=autocommit)
    check_works(engine)
    started = time.monotonic()
    with pytest.raises(errors_at_the_deadline(server)), engine.request(deadline=1.0) as conn:
        while time.monotonic() - started < 10:
            conn.execute("select pg_sleep(0.05)")
            conn.commit()
    assert time.monotonic() - started > 0.95
    check_works(engine)


def test_statement_within_the_deadline_is_left_alone(make_engine: Any) -> None:
    """However late it begins, what is done in time is done."""
    engine = make_engine()
    with engine.request(deadline=30) as conn:
        for _ in range(4):
            assert conn.execute("select 1 from pg_sleep(0.2)").fetchone() == (1,)
    assert (engine.stats.connects, engine.stats.commits) == (1, 1)


def leave_by_exception(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), engine.request(deadline=20) as conn:
        conn.execute("select 1")
        raise ZeroDivisionError


def leave_by_error(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable), engine.request(deadline=20) as conn:
        conn.execute("select * from nothing_like_it")


def leave_by_cancel(engine: Engine) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        while True:  # on a slow machine there may be no connection in so short a time
            with contextlib.suppress(AcquireTimeout), engine.request(deadline=0.2) as conn:
                conn.execute("select pg_sleep(30)")


def leave_after_commit(engine: Engine) -> None:
    with engine.request(deadline=20) as conn:
        conn.execute("select 1")
        conn.commit()
        conn.execute("select 1")
        conn.commit()


def leave_after_rollback(engine: Engine) -> None:
    with engine.request(deadline=20) as conn:
        conn.execute("select 1")
        conn.rollback()


def leave_as_it_came(engine: Engine) -> None:
    with engine.request(deadline=20) as conn:
        conn.execute("select 1")


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize(
    "leave",
    [leave_as_it_came, leave_by_exception, leave_by_error, leave_by_cancel, leave_after_commit, leave_after_rollback],
)
def test_timeouts_do_not_survive_the_request(
    make_engine: Any, leave: Callable[[Engine], None], autocommit: bool, reset: bool
) -> None:
    """However a request with a deadline ends, a request without one that comes next may take its time."""
    engine = make_engine(reset=reset, autocommit=autocommit)
    for _ in range(3):
        leave(engine)
        assert timeouts_at_rest(engine) == {}
        check_works(engine)


def test_connection_held_unused_is_told(make_engine: Any, hands: Hands) -> None:
    """The longest pause counts: before the first statement, between two of them, or after the last."""
    events: list[Event] = []
    engine = make_engine(hold_warning=2.0, on_event=events.append)
    hands.drive(engine)
    for pauses in ((5.0, 0.0, 0.0), (0.0, 6.0, 1.0), (1.0, 0.0, 7.0), (2.0, 2.0, 2.0)):
        with engine.request() as conn:
            hands.move(pauses[0])
            conn.execute("select 1")
            hands.move(pauses[1])
            conn.execute("select 1")
            hands.move(pauses[2])
    assert [event.seconds for event in events if isinstance(event, HeldUnused)] == pytest.approx([5.0, 6.0, 7.0])
    assert engine.stats.holds == 3


def test_connection_at_work_is_not_unused(make_engine: Any, hands: Hands) -> None:
    """A statement that takes long, or many that take a while together, are use."""
    engine = make_engine(hold_warning=2.0)
    hands.drive(engine)
    with engine.request() as conn:
        conn.add_notice_handler(lambda notice: hands.move(60.0))  # while the statement runs
        conn.execute("do $$ begin raise notice 'working'; end $$")
        for _ in range(10):
            hands.move(1.5)
            conn.execute("select 1")
    assert hands.monotonic > 120
    assert engine.stats.holds == 0


def test_without_hold_warning_nobody_watches(make_engine: Any, hands: Hands) -> None:
    """By default a request may hold its connection for any time."""
    engine = make_engine()
    hands.drive(engine)
    with engine.request() as conn:
        conn.execute("select 1")
        hands.move(3600.0)
    assert engine.stats.holds == 0


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    with PostgresServer(max_connections=10) as running:
        yield running


def attempts(engine: Engine) -> int:
    """Fail to get a connection; return how many attempts that took."""
    with pytest.raises(AcquireTimeout) as caught:
        engine.connect()
    return caught.value.attempts


def test_server_that_is_down_is_not_waited_for_each_time(
    engines: Any, own_server: PostgresServer, hands: Hands
) -> None:
    """After one whole `max_wait` requests fail fast, with one attempt each, for `down_ttl` give or take half of it;
    then one waits again. A server that is back serves the very next request."""
    engine = engines(conninfo=own_server.dsn, max_wait=5.0, down_ttl=1.0)
    hands.drive(engine)
    own_server.stop()
    assert attempts(engine) > 2
    since = hands.wall
    for _ in range(3):
        assert attempts(engine) == 1
    assert hands.wall == since
    hands.move(0.49)
    assert attempts(engine) == 1
    hands.move(1.02)
    assert attempts(engine) > 2
    assert attempts(engine) == 1
    own_server.start()
    assert engine.connect().execute("select 1").fetchone() == (1,)


def test_every_request_waits_with_down_ttl_zero(engines: Any, own_server: PostgresServer, hands: Hands) -> None:
    """0 turns it off."""
    engine = engines(conninfo=own_server.dsn, max_wait=5.0, down_ttl=0)
    hands.drive(engine)
    own_server.stop()
    assert attempts(engine) > 2
    assert attempts(engine) > 2


def test_freeze_is_told_when_it_is_over(make_engine: Any, hands: Hands) -> None:
    """The time of day went on, the process's own clock did not: it stood still for that long. Waiting, and a clock
    that is set by less than a second, are no freeze."""
    events: list[Event] = []
    engine = make_engine(on_event=events.append)
    hands.drive(engine)

    def serve() -> list[float]:
        events.clear()
        with engine.request() as conn:
            conn.execute("select 1")
        return [event.seconds for event in events if isinstance(event, Thawed)]

    assert serve() == []
    hands.wall += 60.0
    assert serve() == pytest.approx([60.0])
    assert serve() == []
    hands.move(60.0)
    assert serve() == []
    hands.wall += 0.9
    assert serve() == []
    assert (engine.stats.thaws, engine.stats.connects) == (1, 1)


def test_silent_autocommit_connection_is_replaced(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """One that idled for `check_after` is tried before the request gets it; a dead line costs about a second."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), autocommit=True, check_after=30.0)
    late = [0.0]
    engine._clock = Clock(wall=lambda: time.time() + late[0])
    engine._start()
    with engine.request() as conn:
        lost = conn
    proxy.hush()
    late[0] = 31.0
    check_replaced_soon(engine, lost)


@pytest.mark.parametrize(("idle", "more"), [(0.0, 0), (29.0, 0), (31.0, 1)])
def test_only_what_idled_for_long_is_tried(
    make_engine: Any, proxy: Proxy, server: PostgresServer, hands: Hands, idle: float, more: int
) -> None:
    """A younger autocommit connection costs no exchange for that."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), autocommit=True, check_after=30.0, census_ttl=3600)
    hands.drive(engine)
    for _ in range(2):
        with engine.request() as conn:
            conn.execute("select 1")
    hands.move(idle)
    with proxy.counting() as traffic, engine.request() as conn:
        conn.execute("select 1")
        assert traffic.exchanges == 1 + more
    assert engine.stats.connects == 1


@pytest.mark.parametrize("end", ["commit", "rollback", "error"])
def test_configure_that_talks_is_run_after_each_reset(make_engine: Any, end: str) -> None:
    """The reset undoes what it set in the session, so it sets it again: however the request ended, and also once the
    connection has all that the kit prepares."""
    configured: list[psycopg.Connection[Any]] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        configured.append(conn)
        conn.execute("set work_mem = '7MB'")
        conn.commit()

    engine = make_engine(configure=configure)
    for number in range(1, PREPARE_AFTER + 5):
        with engine.scope() as scope:
            assert scope.connection.execute("show work_mem").fetchone() == ("7MB",)
            assert len(configured) == number
            scope.connection.execute("set work_mem = '9MB'")
            if end == "rollback":
                scope.fail()
            elif end == "error":
                scope.respond(400)
                with pytest.raises(psycopg.Error):
                    scope.connection.execute("select * from nothing_like_it")
        assert len(configured) == number + 1
    assert engine.stats.connects == 1


def test_configure_that_talks_is_run_once_without_reset(make_engine: Any) -> None:
    """Nothing undoes it there."""
    configured: list[psycopg.Connection[Any]] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        configured.append(conn)
        conn.execute("set work_mem = '7MB'")
        conn.commit()

    engine = make_engine(configure=configure, reset=False)
    for _ in range(3):
        with engine.request() as conn:
            assert conn.execute("show work_mem").fetchone() == ("7MB",)
    assert len(configured) == 1


def test_configure_that_fails_later_costs_the_connection_and_no_request(make_engine: Any) -> None:
    """The request had ended; the next one gets a connection that could be configured."""
    calls: list[None] = []

    def configure(conn: psycopg.Connection[Any]) -> None:
        calls.append(None)
        conn.execute("select 1 / %s", [len(calls) % 2])
        conn.commit()

    engine = make_engine(configure=configure)
    for _ in range(2):
        with engine.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert (engine.stats.connects, engine.stats.commits, engine.stats.open) == (2, 2, 0)


def warm(engine: Engine) -> int:
    """Serve as many requests as make the kit prepare its statements; return the pid of the backend."""
    pid = 0
    for _ in range(8):
        with engine.request() as conn:
            conn.execute("select 1")
            pid = conn.info.backend_pid
    return pid


def test_kit_prepares_its_statements_where_that_pays(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """A connection's first five requests are served as they are; then the kit's own statements are prepared, once."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn))
    executed = []
    with proxy.counting() as traffic:
        for _ in range(12):
            with engine.request() as conn:
                conn.execute("select 1")
                executed.append("EXECUTE serverless_pg_kit_endless_guard" in traffic.queries[-1])
    assert executed[:6] == [False] * 6
    assert executed[7:] == [True] * 5
    assert "\n".join(traffic.queries).count("PREPARE serverless_pg_kit_guard") == 1


@pytest.mark.skipif(not NOTICES_DISCARDS, reason="psycopg before 3.3 trips over discarded statements itself")
@pytest.mark.parametrize("word", ["discard all", "deallocate all", "discard plans; deallocate all"])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_user_who_discards_all_costs_one_exchange(
    make_engine: Any, proxy: Proxy, server: PostgresServer, word: str, ending: str
) -> None:
    """What was prepared, the kit's statements too, may be discarded in mid-request; nobody hears of it."""
    engine = make_engine(conninfo=proxy.reroute(server.dsn), census_ttl=3600)
    pid = warm(engine)
    with engine.scope() as scope:
        conn = scope.connection
        conn.commit()
        conn.autocommit = True
        for part in word.split(";"):
            conn.execute(part)
        conn.autocommit = False
        conn.execute("select 1")
        if ending == "rollback":
            scope.fail()
    with proxy.counting() as traffic:
        assert warm(engine) == pid
    assert traffic.exchanges <= 8 * 3 + 1
    assert (engine.stats.connects, engine.stats.maintenance_failures) == (1, 0)


def test_rollback_in_mid_request_costs_no_connection(make_engine: Any) -> None:
    """psycopg forgets with it what it had prepared, and so does the kit."""
    engine = make_engine()
    pid = warm(engine)
    with engine.request() as conn:
        conn.execute("select 1", prepare=True)
        conn.rollback()
        conn.execute("select 1", prepare=True)
    assert warm(engine) == pid
    with engine.scope() as scope:
        scope.connection.execute("select 2", prepare=True)
        scope.fail()
    assert warm(engine) == pid
    assert (engine.stats.connects, engine.stats.maintenance_failures) == (1, 0)


def test_who_wants_no_prepared_statements_gets_none(make_engine: Any, proxy: Proxy, server: PostgresServer) -> None:
    """`prepare_threshold = None` by `configure` holds for the kit as well."""
    engine = make_engine(
        conninfo=proxy.reroute(server.dsn), configure=lambda conn: setattr(conn, "prepare_threshold", None)
    )
    with proxy.counting() as traffic:
        warm(engine)
        warm(engine)
        with engine.request() as conn:
            assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    assert "PREPARE" not in "\n".join(traffic.queries)


def test_most_recently_used_connection_goes_first(make_engine: Any) -> None:
    """A burst's other connections are left to grow old."""
    engine = make_engine(max_size=3)
    with engine.request() as first:
        with engine.request(join=False) as second:
            pass
        assert engine.stats.open == 2
    for _ in range(3):
        with engine.request() as conn:
            assert conn is first
    with engine.request() as conn, engine.request(join=False) as other:
        assert (conn, other) == (first, second)


def test_requests_are_served_in_the_order_they_came(make_engine: Any) -> None:
    """Nobody starves in a line for the one connection."""
    engine = make_engine(max_size=1)
    served: list[int] = []

    def work(number: int) -> None:
        with engine.request() as conn:
            conn.execute("select 1")
            served.append(number)

    with engine.request():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
        for number, thread in enumerate(threads):
            thread.start()
            assert eventually(lambda number=number: len(engine._slots._line) == number + 1)  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert served == list(range(10))


def test_line_is_waited_in_for_the_deadline_and_no_longer(make_engine: Any) -> None:
    """A request with little time left does not wait for the whole of `max_wait`, and leaves the line in order."""
    engine = make_engine(max_size=1, max_wait=10)
    with engine.request():
        started = time.monotonic()
        with pytest.raises(AcquireTimeout, match="max_size"), engine.request(join=False, deadline=0.3):
            raise AssertionError("not served")
        assert 0.25 < time.monotonic() - started < 5.0
    check_works(engine)


def test_waiting_for_notifications_ends_by_its_own_timeout(make_engine: Any) -> None:
    """Late in a request with a deadline too."""
    engine = make_engine()
    with engine.request(deadline=30.0) as conn:
        conn.execute("listen news")
        conn.commit()
        conn.execute("select pg_sleep(0.3)")  # until here the server's time-outs do
        conn.commit()
        started = time.monotonic()
        assert list(conn.notifies(timeout=0.2)) == []
        assert time.monotonic() - started < 5
