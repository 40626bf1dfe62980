"""Several hosts in one connection string: whichever serves is found within the budget, and a change is noticed."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from blocking import working
from proxy import Proxy
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from replicas import both_dsn, replicas, standby_dsn
from support import entries, eventually, server_versions

from serverless_pg_kit import AcquireTimeout, CommitUnknown, Engine
from serverless_pg_kit.testing import PostgresServer

Pair = tuple[PostgresServer, PostgresServer]


@pytest.fixture(scope="module", params=server_versions())
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A primary and its standby."""
    with replicas(request.param) as servers:
        yield servers


@contextmanager
def obstacle(kind: str) -> Iterator[int]:
    """Give a port that refuses connections, or that accepts them and says nothing."""
    with socket.socket() as ear:
        ear.bind(("127.0.0.1", 0))
        if kind == "silent":
            ear.listen()
        yield ear.getsockname()[1]


def role_of(engine: Engine) -> str:
    """Return which server serves a request of `engine`."""
    with engine.request() as conn:
        [is_standby] = conn.execute("select pg_is_in_recovery()").fetchone() or [None]
        return "standby" if is_standby else "primary"


@pytest.mark.parametrize("kind", ["refused", "silent"])
@pytest.mark.parametrize("wanted", ["any", "read-write"])
def test_second_host_serves_when_the_first_does_not(
    engines: Any, server: PostgresServer, kind: str, wanted: str
) -> None:
    """Within the budget, whether the first one is down or only looks alive."""
    with obstacle(kind) as port:
        ports = {"host": "127.0.0.1,127.0.0.1", "port": f"{port},{server.port}", "target_session_attrs": wanted}
        engine = engines(conninfo=make_conninfo(server.dsn, **ports), max_wait=4.0)
        started = time.monotonic()
        with engine.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
            assert time.monotonic() - started < 4.0
        assert engine.stats.retries == 0


def test_second_host_serves_when_the_first_falls_silent(engines: Any, server: PostgresServer, proxy: Proxy) -> None:
    """With a connection to it that looks alive, and a port that accepts others, as of a machine that hangs."""
    ports = {"host": "127.0.0.1,127.0.0.1", "port": f"{proxy.port},{server.port}"}
    engine = engines(conninfo=make_conninfo(server.dsn, **ports), max_wait=8.0)
    with engine.request() as conn:
        assert conn.info.port == proxy.port
    proxy.hush(newcomers=True)
    started = time.monotonic()
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
        assert conn.info.port == server.port
    assert time.monotonic() - started < 8.0
    assert engine.stats.losses == 1


@pytest.mark.parametrize(
    ("wanted", "role"),
    [
        ("any", "standby"),
        ("read-write", "primary"),
        ("read-only", "standby"),
        ("primary", "primary"),
        ("standby", "standby"),
        ("prefer-standby", "standby"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_wanted_server_is_found(
    engines: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch, wanted: str, role: str, by_variable: bool
) -> None:
    """Wherever it stands in the list; here the standby comes first, and in the other order the same is found."""
    changes = {} if by_variable else {"target_session_attrs": wanted}
    if by_variable:
        monkeypatch.setenv("PGTARGETSESSIONATTRS", wanted)
    engine = engines(conninfo=both_dsn((pair[1], pair[0]), **passwords(pair), **changes))
    assert role_of(engine) == role
    assert engine.stats.retries == 0
    if wanted != "any":
        assert role_of(engines(conninfo=both_dsn(pair, **changes))) == role


def passwords(pair: Pair) -> dict[str, str]:
    """Return what a connection string to both needs besides the addresses: the primary's."""
    return {name: str(value) for name, value in conninfo_to_dict(pair[0].dsn).items() if name == "password"}


def test_standby_is_only_preferred(engines: Any, pair: Pair) -> None:
    """Without any, the primary serves."""
    primary, _ = pair
    with obstacle("refused") as port:
        ports = {"port": f"{port},{primary.port}", "target_session_attrs": "prefer-standby"}
        assert role_of(engines(conninfo=both_dsn(pair, **ports))) == "primary"


def test_wanted_server_that_is_not_there_is_waited_for(engines: Any, pair: Pair) -> None:
    """For the whole budget: it may be promoted. Then the error says what was found instead."""
    primary, replica = pair
    wanted = make_conninfo(standby_dsn(primary, replica), target_session_attrs="read-write")
    with pytest.raises(AcquireTimeout, match="session is read-only") as caught:
        engines(conninfo=wanted, max_wait=0.4).connect()
    assert caught.value.attempts > 1


@pytest.mark.parametrize("by_variable", [False, True])
def test_load_is_spread(engines: Any, pair: Pair, monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
    """``load_balance_hosts=random`` finds both servers in turn; without it the first one serves all."""
    if psycopg.pq.version() < 160000:
        pytest.skip("libpq knows load_balance_hosts from 16 on")
    if by_variable:
        monkeypatch.setenv("PGLOADBALANCEHOSTS", "random")
    conninfo = both_dsn(pair, **({} if by_variable else {"load_balance_hosts": "random"}))
    assert {role_of(engines(conninfo=conninfo)) for _ in range(20)} == {"primary", "standby"}
    monkeypatch.delenv("PGLOADBALANCEHOSTS", raising=False)
    assert {role_of(engines(conninfo=both_dsn(pair))) for _ in range(5)} == {"primary"}


@pytest.fixture
def twins(pair: Pair) -> Iterator[Pair]:
    """A server that can be turned read-only, and beside it one that takes writes."""
    with PostgresServer(pair[0].version, bin_dir=pair[0]._binaries.bin_dir, max_connections=20) as other:
        for each in (other, pair[0]):
            with each.superuser("app") as conn:
                conn.execute("create table if not exists orders (entry int); grant all on orders to app")
        with pair[0].superuser("app") as conn, other.superuser() as admin:
            password = passwords(pair)["password"]
            admin.execute(f"alter role app password '{password}'".encode())
            try:
                yield pair[0], other
            finally:
                turn(conn, "off")


def turn(conn: psycopg.Connection[Any], read_only: str) -> None:
    """Turn the server of `conn`, a superuser's connection, read-only or back, and wait until that holds."""
    conn.execute("set default_transaction_read_only = off")  # for the session itself
    conn.execute(f"alter system set default_transaction_read_only = {read_only}".encode())
    conn.execute("select pg_reload_conf()")


@pytest.mark.parametrize("deadline", [None, 60.0])
def test_next_request_finds_the_new_primary(engines: Any, twins: Pair, deadline: float | None) -> None:
    """A server that stops to take writes is left at the end of the request that noticed it, with all connections."""
    old, new = twins
    conninfo = both_dsn((old, new), target_session_attrs="read-write")
    engine = engines(conninfo=conninfo, max_wait=20.0)
    with engine.request() as conn, engine.request(join=False):
        conn.execute("insert into orders values (1)")
    with old.superuser("app") as admin:
        turn(admin, "on")
        assert eventually(lambda: is_read_only(old))

        def write() -> bool:
            try:
                with engine.request(deadline=deadline) as conn:
                    conn.execute("insert into orders values (2)")
            except psycopg.errors.ReadOnlySqlTransaction:
                return True
            return False

        assert eventually(write)  # the reload reaches a session in its own time
        assert engine._slots.idle == 0
        with engine.request() as conn:
            assert conn.info.port == new.port
            conn.execute("insert into orders values (3)")


def is_read_only(server: PostgresServer) -> bool:
    """Tell whether new sessions of `server` may only read."""
    with psycopg.connect(server.dsn) as conn:
        return conn.execute("show transaction_read_only").fetchone() == ("on",)


def test_whole_transaction_is_run_again_on_the_new_primary(engines: Any, twins: Pair) -> None:
    """`run_transaction` hides the change; the caught error of a request by hand, whose deadline is watched, is seen."""
    old, new = twins
    conninfo = both_dsn((old, new), target_session_attrs="read-write")
    engine, by_hand = (engines(conninfo=conninfo, max_wait=20.0) for _ in range(2))
    for each in (engine, by_hand):
        assert each.connect().info.port == old.port
        each.clean()
    with old.superuser("app") as admin:
        turn(admin, "on")
        assert eventually(lambda: is_read_only(old))
        engine.run_transaction(working(engine, lambda conn: conn.execute("insert into orders values (4)")), attempts=50)

        def refused() -> bool:
            try:
                by_hand.connect(deadline=60).execute("insert into orders values (5)")
            except psycopg.errors.ReadOnlySqlTransaction:
                return True
            finally:
                by_hand.clean()
            return bool(by_hand.stats.connects > 1)

        assert eventually(refused)
        assert by_hand.connect().info.port == new.port
    with new.superuser("app") as conn:
        assert conn.execute("select count(*) from orders where entry = 4").fetchone() == (1,)


@pytest.mark.parametrize("how", ["asked", "statement"])
def test_request_that_wanted_to_read_keeps_its_connection(make_engine: Any, ledger: str, how: str) -> None:
    """Its refused write is its own doing, and tells nothing of the server."""
    engine = make_engine()
    for _ in range(2):
        with (
            pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
            engine.request(read_only=True if how == "asked" else None) as conn,
        ):
            if how == "statement":
                conn.execute("set transaction read only")
            conn.execute("insert into ledger values (1)")
    runs: list[int] = []

    def work(conn: Any) -> None:
        runs.append(1)
        conn.execute("set transaction read only")
        conn.execute("insert into ledger values (1)")

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        engine.run_transaction(working(engine, work))
    assert (engine.stats.connects, len(runs)) == (1, 1)


@pytest.fixture(params=server_versions())
def synchronous_pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A primary that confirms nothing before its standby has it; no other test has them."""
    with replicas(request.param) as servers:
        with servers[0].superuser("app") as conn:
            conn.execute("create table ledger (entry int primary key); grant all on ledger to app")
            conn.execute("alter system set synchronous_standby_names = '*'")
            conn.execute("select pg_reload_conf()")
            standbys = "select sync_state from pg_stat_replication"
            assert eventually(lambda: conn.execute(standbys).fetchall() == [("sync",)])
        yield servers


@pytest.mark.timeout(240)
def test_promotion_under_load(engines: Any, synchronous_pair: Pair) -> None:
    """The primary is killed and its standby promoted while four workers write. They go on within their budget; what was
    confirmed is there once, what failed is not, and of the rest they were told that it is unknown."""
    primary, replica = synchronous_pair
    conninfo = both_dsn((primary, replica), target_session_attrs="read-write")
    engine = engines(conninfo=conninfo, max_size=4, max_wait=60.0)
    done: list[int] = []
    unknown: list[int] = []
    problems: list[str] = []
    over = threading.Event()

    def enter(conn: psycopg.Connection[Any], entry: int) -> None:
        conn.execute("insert into ledger values (%s)", [entry])

    def work(number: int) -> None:
        entry = number
        while not over.is_set():
            entry += 4
            try:
                engine.run_transaction(working(engine, functools.partial(enter, entry=entry)), attempts=10)
                done.append(entry)
            except CommitUnknown:
                unknown.append(entry)
            except Exception as error:
                problems.append(f"{type(error).__name__}: {error}")
                return

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    try:
        assert eventually(lambda: len(done) > 50)
        primary.kill()
        before = len(done)
        promoted = make_conninfo(primary.superuser_dsn, port=replica.port, dbname="app")
        with psycopg.connect(promoted, autocommit=True) as conn:
            conn.execute("select pg_promote()")
        assert eventually(lambda: len(done) > before + 50 or bool(problems), 90)
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert problems == []
    with psycopg.connect(promoted, autocommit=True) as conn:
        found = entries(conn)
    assert set(done) <= set(found) <= set(done) | set(unknown)
    assert len(done) == len(set(done))
    assert not set(done) & set(unknown)
