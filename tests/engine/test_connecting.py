"""Connecting: what is retried, what is not, for how long, and what the error tells."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import eventually, whole_chain

from serverless_pg_kit import (
    AcquireTimeout,
    ConnectRejected,
    CredentialsRejected,
    FailureKind,
    Rule,
    TooManyConnections,
)
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.decisions.backoff import LAST_CHANCE
from serverless_pg_kit.events import Event, Refused
from serverless_pg_kit.sqlstate import TRACED_ATTEMPTS
from serverless_pg_kit.testing import PostgresServer


@contextmanager
def full(server: PostgresServer) -> Iterator[ExitStack]:
    """Take every slot that an ordinary role can reach; the stack gives them back.

    Begins when no session of an earlier test is still on its way out: its slot would come free later.
    """
    with ExitStack() as stack:
        watcher = stack.enter_context(psycopg.connect(server.superuser_dsn, autocommit=True))
        others = "select count(*) from pg_stat_activity where backend_type = 'client backend'"
        assert eventually(lambda: watcher.execute(others).fetchone() == (1,))
        try:
            while True:
                stack.enter_context(psycopg.connect(server.dsn))
        except psycopg.OperationalError as error:
            assert any(word in str(error) for word in ("reserved", "too many", "reserviert"))  # noqa: PT017
        yield stack


def refusals(events: list[Event]) -> list[str]:
    """Return the classes of the refused attempts."""
    return [event.kind for event in events if isinstance(event, Refused)]


def test_full_server_is_waited_for(engines: Any, tiny_server: PostgresServer) -> None:
    """When slots are taken and come free, the request is served, well inside its budget."""
    with full(tiny_server) as slots:
        engine = engines(conninfo=tiny_server.dsn, max_wait=20)
        started = time.monotonic()
        threading.Timer(1.0, slots.close).start()
        assert engine.connect().execute("select 1").fetchone() == (1,)
        assert 1.0 <= time.monotonic() - started < 10.0
    assert engine.stats.refusals == engine.stats.retries > 0


def test_full_for_too_long_ends_at_the_deadline(engines: Any, tiny_server: PostgresServer) -> None:
    """The error comes at the deadline, tells how long, how often and what the server said, and poisons nothing."""
    engine = engines(conninfo=tiny_server.dsn, max_wait=0.8)
    with full(tiny_server):
        started = time.monotonic()
        with pytest.raises(TooManyConnections) as caught:
            engine.connect()
        assert 0.5 < time.monotonic() - started < 5.0
    error = caught.value
    assert error.attempts == engine.stats.refusals > 1
    assert 0.5 < error.waited < 5.0
    assert f"{error.attempts} attempts" in str(error)
    assert "reserved" in str(error)
    assert isinstance(error.__cause__, psycopg.OperationalError)
    assert (engine.stats.open, engine.stats.in_use) == (0, 0)
    assert eventually(lambda: engine.connect().execute("select 1").fetchone() == (1,))


def test_last_attempt_that_is_cut_off_hides_nothing(
    engines: Any, tiny_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time that runs out in the last attempt says nothing about the server; what it said before is told."""
    events: list[Event] = []
    proxy = Proxy(tiny_server.host, tiny_server.port)

    def listen(event: Event) -> None:
        events.append(event)
        proxy.hush(newcomers=len(events) > 3)

    with proxy, full(tiny_server):
        engine = engines(
            conninfo=proxy.reroute(tiny_server.dsn),
            max_wait=1.0,
            backoff_base=0.2,
            backoff_cap=0.2,
            on_event=listen,
        )
        with pytest.raises(TooManyConnections, match="reserved"):
            engine.connect()
    assert refusals(events)[0] == "capacity"
    assert refusals(events)[-1] == "network"


class FakeTime:
    """Time that passes only by sleeping, and while attempts are made: `attempt_seconds` each. `slept` is a record."""

    def __init__(self, attempt_seconds: float = 0.0) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._attempt_seconds = attempt_seconds

    def clock(self, dice: float) -> Clock:
        """Return a clock on this time, all dice showing `dice`."""
        return Clock(monotonic=lambda: self.now, dice=lambda: dice, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Pass `seconds` without waiting."""
        self.slept.append(seconds)
        self.now += seconds

    def listen(self, event: Event) -> None:
        """Let an attempt take its time: it is announced before it is over."""
        if isinstance(event, Refused):
            self.now += self._attempt_seconds


@pytest.mark.parametrize("dice", [0.9, 0.3])
@pytest.mark.parametrize("attempt_seconds", [0.0, 0.25])
def test_pauses_grow_and_the_last_attempt_is_in_time(
    engines: Any, tiny_server: PostgresServer, dice: float, attempt_seconds: float
) -> None:
    """Against a full server the pauses obey the back-off, and the last is cut so that an attempt still fits."""
    time_passed = FakeTime(attempt_seconds)
    engine = engines(
        conninfo=tiny_server.dsn, max_wait=10, backoff_base=0.05, backoff_cap=2.0, on_event=time_passed.listen
    )
    engine._clock = time_passed.clock(dice)
    with full(tiny_server), pytest.raises(TooManyConnections) as caught:
        engine.connect()
    *regular, last = time_passed.slept
    ceilings = [min(2.0, 0.05 * 3**number) for number in range(len(regular) + 1)]
    assert regular == pytest.approx([dice * ceiling for ceiling in ceilings[:-1]])
    assert 0 < last <= dice * ceilings[-1]
    assert caught.value.attempts == engine.stats.refusals == len(time_passed.slept) + 1
    # What is kept for the last attempt is as long as the slowest one, or the least that is kept for any.
    assert caught.value.waited == pytest.approx(10 if attempt_seconds else 10 - LAST_CHANCE)


@pytest.mark.parametrize(
    ("names", "attempts"), [({"max_wait": 0}, 1), ({"max_retries": 3}, 4), ({"max_retries": 0}, 1)]
)
def test_attempts_are_limited_by_settings(
    engines: Any, tiny_server: PostgresServer, names: dict[str, Any], attempts: int
) -> None:
    """`max_wait=0` means one attempt, `max_retries=3` four."""
    engine = engines(conninfo=tiny_server.dsn, backoff_base=0.01, backoff_cap=0.02, **names)
    with full(tiny_server), pytest.raises(TooManyConnections) as caught:
        engine.connect()
    assert caught.value.attempts == engine.stats.refusals == attempts


def test_max_wait_zero_connects_when_there_is_room(make_engine: Any) -> None:
    """One attempt is one that may succeed."""
    assert make_engine(max_wait=0).connect().execute("select 1").fetchone() == (1,)


def test_request_deadline_cuts_the_wait(engines: Any, tiny_server: PostgresServer) -> None:
    """An invocation with little time left does not wait for the whole of `max_wait`."""
    engine = engines(conninfo=tiny_server.dsn, max_wait=10)
    with full(tiny_server):
        started = time.monotonic()
        with pytest.raises(TooManyConnections), engine.request(deadline=0.4):
            raise AssertionError("not served")
        assert time.monotonic() - started < 5.0


@pytest.mark.parametrize(
    ("change", "kind", "error", "code"),
    [
        ({"password": "wr0ng-hunter2"}, "credentials", CredentialsRejected, "28P01"),
        ({"user": "nobody_here", "password": "wr0ng-hunter2"}, "credentials", CredentialsRejected, "28P01"),
        ({"dbname": "nope"}, "permanent", ConnectRejected, "3D000"),
        ({"user": "refused_role", "password": "hunter2-right"}, "permanent", ConnectRejected, "28000"),
        ({"user": "poor_role", "password": "hunter2-right", "dbname": "shut"}, "permanent", ConnectRejected, "42501"),
        ({"dbname": "frozen"}, "permanent", ConnectRejected, "55000"),
    ],
)
def test_rejection_is_told_at_once(
    engines: Any,
    server: PostgresServer,
    superuser: Any,
    change: dict[str, str],
    kind: str,
    error: type[ConnectRejected],
    code: str,
) -> None:
    """What waiting does not cure costs one attempt, on the server too, and no secret shows up anywhere."""
    prepare_rejections(superuser)
    params = conninfo_to_dict(server.dsn) | change
    records: list[logging.LogRecord] = []
    handler = Recorder(records)
    logger = logging.getLogger("serverless_pg_kit")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    events: list[Event] = []
    engine = engines(conninfo=make_conninfo("", **params), on_event=events.append)
    started, logged = time.monotonic(), len(server.log)
    try:
        with pytest.raises(error) as caught:
            engine.connect()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert time.monotonic() - started < 5.0
    assert refusals(events) == [kind]
    assert caught.value.code == code
    said = caught.value.reason.partition("FATAL:  ")[2].splitlines()[0]
    assert eventually(lambda: server.log[logged:].count(said) == 1)
    seen = [*whole_chain(caught.value), repr(events), *(record.getMessage() for record in records), repr(engine)]
    password = str(params["password"])
    assert not [text for text in seen if password in text]


class Recorder(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.DEBUG)
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def prepare_rejections(superuser: psycopg.Connection[Any]) -> None:
    """Make roles and databases that refuse, once a server."""
    if superuser.execute("select 1 from pg_roles where rolname = 'refused_role'").fetchone():
        return
    for statement in (
        "create role refused_role nologin password 'hunter2-right'",
        "create role poor_role login password 'hunter2-right'",
        "create database shut",
        "revoke connect on database shut from public",
        "create database frozen",
        "alter database frozen allow_connections false",
    ):
        superuser.execute(statement)


def test_limit_of_a_role_is_capacity(engines: Any, server: PostgresServer, superuser: Any) -> None:
    """A connection limit of the role is waited for like a full server."""
    superuser.execute("alter role app connection limit 0")
    try:
        with pytest.raises(TooManyConnections, match="too many connections for role"):
            engines(conninfo=server.dsn, max_wait=0.2).connect()
    finally:
        superuser.execute("alter role app connection limit -1")


def test_server_that_is_shutting_down_is_waited_for(engines: Any) -> None:
    """A restart in progress is an interruption, not an error."""
    with PostgresServer(max_connections=10) as server:
        refused = threading.Event()
        events: list[Event] = []

        def listen(event: Event) -> None:
            events.append(event)
            refused.set()

        def go_on() -> None:
            refused.wait(20)
            holder.close()
            stopping.join()
            server.start()

        watched = engines(conninfo=server.dsn, max_wait=30, on_event=listen)
        holder = psycopg.connect(server.dsn)
        stopping = threading.Thread(target=server.stop, args=("smart",))  # waits for the session above
        stopping.start()
        assert eventually(lambda: "smart shutdown" in server.log)
        starting = threading.Thread(target=go_on)
        starting.start()
        assert watched.connect().execute("select 1").fetchone() == (1,)
        starting.join()
        assert refusals(events)[0] == "starting up"


def test_refused_port_is_retried_until_the_deadline(engines: Any) -> None:
    """Nobody listening is a network failure, told with the address."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        engine = engines(conninfo=f"host=127.0.0.1 port={port} user=app", max_wait=1.0)
        with pytest.raises(AcquireTimeout, match="Connection refused") as caught:
            engine.connect()
    assert not isinstance(caught.value, TooManyConnections)
    assert caught.value.attempts > 1


def test_deaf_server_does_not_hold_the_deadline(engines: Any) -> None:
    """A server that accepts and says nothing costs `max_wait` and not libpq's two seconds, let alone for ever."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        engine = engines(conninfo=f"host=127.0.0.1 port={deaf.getsockname()[1]} user=app", max_wait=0.5)
        started = time.monotonic()
        with pytest.raises(AcquireTimeout, match="connection timeout expired"):
            engine.connect()
        assert 0.4 < time.monotonic() - started < 1.9


def test_second_host_serves_when_the_first_is_deaf(engines: Any, server: PostgresServer) -> None:
    """One silent host does not eat the whole budget of a multi-host string."""
    params = conninfo_to_dict(server.dsn)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        params |= {"host": "127.0.0.1,127.0.0.1", "port": f"{deaf.getsockname()[1]},{server.port}"}
        engine = engines(conninfo=make_conninfo("", **params), max_wait=5)
        assert engine.connect().execute("select 1").fetchone() == (1,)


def test_unknown_host_name_fails_soon(engines: Any) -> None:
    """A mistyped name is tried a little, not for the whole budget."""
    engine = engines(conninfo="host=does-not-exist.invalid user=app", max_wait=30, backoff_cap=0.01)
    with pytest.raises(AcquireTimeout, match=r"does-not-exist\.invalid") as caught:
        engine.connect()
    assert caught.value.attempts == 3


def test_users_rule_decides(engines: Any, server: PostgresServer) -> None:
    """A user can have a missing database waited for."""
    rule = Rule(FailureKind.STARTING_UP, codes=("3D000",))
    conninfo = make_conninfo(server.dsn, dbname="not_restored_yet")
    with pytest.raises(AcquireTimeout) as caught:
        engines(conninfo=conninfo, connect_rules=[rule], max_retries=1).connect()
    assert caught.value.attempts == 2


def test_german_server_is_understood(engines: Any, german_server: PostgresServer) -> None:
    """A server that speaks German gets retries for capacity and one attempt for a wrong password."""
    wrong = make_conninfo(german_server.dsn, password="falsch")
    for _ in range(TRACED_ATTEMPTS + 2):  # beyond the attempts that are traced from the start
        with pytest.raises(CredentialsRejected, match="Passwort") as rejected:
            engines(conninfo=wrong, max_wait=5).connect()
        assert rejected.value.code == "28P01"
    with full(german_server), pytest.raises(TooManyConnections, match="reserviert") as caught:
        engines(conninfo=german_server.dsn, max_retries=1).connect()
    assert caught.value.attempts == 2


def test_one_engine_keeps_understanding_german(engines: Any, german_server: PostgresServer) -> None:
    """The SQLSTATE is still read after many attempts of one engine."""
    engine = engines(conninfo=make_conninfo(german_server.dsn, password="falsch"))
    for _ in range(TRACED_ATTEMPTS + 2):
        with pytest.raises(CredentialsRejected):
            engine.connect()
    assert engine.stats.refusals == TRACED_ATTEMPTS + 2


def test_failed_configure_leaves_nothing_open(make_engine: Any) -> None:
    """An error in the user's `configure` is the user's to see, and costs no connection."""

    def configure(conn: psycopg.Connection[Any]) -> None:
        raise LookupError("mine")

    engine = make_engine(configure=configure)
    with pytest.raises(LookupError, match="mine"):
        engine.connect()
    assert engine.stats.open == 0


def test_pool_of_one_process_is_waited_for_in_line(make_engine: Any) -> None:
    """More requests than `max_size` wait, and are told whose limit it was."""
    engine = make_engine(max_size=1, max_wait=0.2)
    with engine.request(), pytest.raises(AcquireTimeout, match="all 1 connections of this process") as caught:
        engine.request(join=False).__enter__()
    assert caught.value.attempts == 0
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_function_name_is_told_to_the_server(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions show which function they belong to, and still belong to one fleet."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "list-sales")
    engine = make_engine(application_name="shop")
    assert engine.connect().execute("show application_name").fetchone() == ("shop:list-sales",)
    assert engine.census().fleet_used == 2


def test_name_in_the_connection_string_names_the_fleet(engines: Any, server: PostgresServer) -> None:
    """Who names the application in the URL is matched by that name."""
    conninfo = make_conninfo(server.dsn, application_name="by_url")
    engine = engines(conninfo=conninfo, application_name="serverless_pg_kit")
    assert engine.connect().execute("show application_name").fetchone() == ("by_url",)
    assert engine.census().fleet_used == 2


def test_database_url_and_pg_variables_are_read(
    engines: Any, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without settings finds the server as other tools do."""
    monkeypatch.setenv("DATABASE_URL", server.dsn)
    assert engines().connect().info.dbname == "app"
    monkeypatch.delenv("DATABASE_URL")
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    for name, value in conninfo_to_dict(server.dsn).items():
        monkeypatch.setitem(os.environ, names[name], str(value))
    assert engines().connect().info.dbname == "app"
