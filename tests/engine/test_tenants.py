"""Several tenants over one engine: no connection, row or setting of one is another's."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from blocking import decorated, working
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import entries, eventually, sessions

from serverless_pg_kit import AcquireTimeout, CredentialsRejected, SettingsError
from serverless_pg_kit.closing import PREPARE_AFTER
from serverless_pg_kit.events import Closed, Event
from serverless_pg_kit.target import MOST
from serverless_pg_kit.testing import PostgresServer, rolled_back

TENANTS = 50
OTHERS_PLACE = "a request for another conninfo needed its place"


def conninfo(number: int) -> str:
    """Return the connection string of a tenant, as a request names it."""
    return f"user=tenant_{number} password=secret-{number}"


@pytest.fixture
def tenants(superuser: psycopg.Connection[Any]) -> None:
    """Fifty roles, each with a row that nobody else may read, and one more table that goes by a setting."""
    if superuser.execute("select 1 from pg_roles where rolname = 'tenant_0'").fetchone():
        return
    for number in range(TENANTS):
        role, password = sql.Identifier(f"tenant_{number}"), sql.Literal(f"secret-{number}")
        superuser.execute(sql.SQL("create role {} login password {}").format(role, password))
    for statement in (
        "create table orders (owner text not null, amount int not null)",
        "insert into orders select 'tenant_' || number, number from generate_series(0, 49) number",
        "alter table orders enable row level security",
        "create policy own on orders using (owner = current_user)",
        "grant select, insert on orders to public",
        "create table bills (owner text not null)",
        "insert into bills select 'tenant_' || number from generate_series(0, 49) number",
        "alter table bills enable row level security",
        "create policy own on bills using (owner = current_setting('app.tenant', true))",
        "grant select on bills to public",
    ):
        superuser.execute(statement)


def visit(conn: psycopg.Connection[Any], number: int) -> list[str]:
    """Do what a request of a tenant does; return what it saw that is not its own."""
    name, found = f"tenant_{number}", []
    if conn.execute("select current_setting('app.tenant', true)").fetchone() not in ((None,), ("",)):
        found.append("a setting")
    if conn.execute("select owner from bills").fetchall():
        found.append("bills before it said who it is")
    conn.execute("select set_config('app.tenant', %s, false)", [name])
    if conn.execute("select owner from bills").fetchall() != [(name,)]:
        found.append("bills")
    if conn.execute("select distinct owner, current_user::text from orders").fetchall() != [(name, name)]:
        found.append("orders")
    return found


def test_fifty_tenants_over_five_connections(make_engine: Any, superuser: Any, fleet: str, tenants: None) -> None:
    """Under threads that want all places, no row of another tenant is read, no session setting crosses, and there are
    never more than `max_size` connections."""
    engine = make_engine(max_size=5, max_wait=60, autocommit=False)
    found: Counter[str] = Counter()
    most: list[int] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(25):
                number = dice.choice((dice.randrange(TENANTS), seed % 3))  # some come often: they find theirs open
                with engine.request(conninfo=conninfo(number)) as conn:
                    found.update(visit(conn, number))
                    most.append(engine.stats.open)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failures, found) == ([], Counter())
    assert max(most) <= 5
    assert engine.stats.commits == 8 * 25
    assert 0 < engine.stats.reuses < engine.stats.commits  # both ways were taken
    assert len(sessions(superuser, fleet)) <= 5


def test_own_connection_is_found_again(make_engine: Any, tenants: None) -> None:
    """A tenant whose connection is still open gets that one, whoever came between; a mapping names it as well."""
    engine = make_engine(max_size=3)
    seen: dict[int, set[int]] = {1: set(), 2: set()}
    for number in (1, 2, 1, 2, 2, 1):
        with engine.request(conninfo=conninfo(number)) as conn:
            seen[number].add(conn.info.backend_pid)
    assert [len(pids) for pids in seen.values()] == [1, 1]
    assert engine.stats.connects == 2
    named: Mapping[str, str] = {"user": "tenant_1", "password": "secret-1"}
    for _ in range(2):
        with engine.request(conninfo=named) as conn:
            assert conn.info.user == "tenant_1"
    assert engine.stats.connects == 3


def test_warm_connection_of_a_tenant_serves_nobody_else(make_engine: Any, tenants: None) -> None:
    """However ordinary the next request is: it is the engine's own."""
    engine = make_engine()
    for _ in range(2 * PREPARE_AFTER):
        with engine.request(conninfo=conninfo(1)) as conn:
            assert conn.execute("select session_user").fetchone() == ("tenant_1",)
    with engine.request() as conn:
        assert conn.execute("select session_user").fetchone() == ("app",)


def test_least_recently_used_makes_place(make_engine: Any, tenants: None) -> None:
    """When all places are idle with others' connections, the one that was not used for longest is closed."""
    events: list[Event] = []
    engine = make_engine(max_size=2, on_event=events.append)
    pids = []
    for number in (1, 2, 1, 3):
        with engine.request(conninfo=conninfo(number)) as conn:
            pids.append(conn.info.backend_pid)
    assert [(event.pid, event.reason) for event in events if isinstance(event, Closed)] == [(pids[1], OTHERS_PLACE)]
    assert engine.stats.open == 2


def test_who_waits_in_line_gets_its_own(make_engine: Any, tenants: None) -> None:
    """A tenant that waited for another's place gets a connection of its own in it."""
    engine = make_engine(max_size=1, max_wait=30)
    users: list[str] = []

    def ask() -> None:
        with engine.request(conninfo=conninfo(2)) as conn:
            users.append(conn.info.user)

    with engine.request(conninfo=conninfo(1)):
        thread = threading.Thread(target=ask)
        thread.start()
        assert eventually(lambda: engine.stats.waiting == 1)
    thread.join()
    assert users == ["tenant_2"]


def test_who_waits_in_line_finds_its_own(make_engine: Any, tenants: None) -> None:
    """Of several idle connections, who waited in line gets that of its tenant, not the one given back last."""
    from serverless_pg_kit.slots import Slot, Slots, Waiter
    from serverless_pg_kit.target import Target

    engine = make_engine(max_size=2)
    pids: list[int] = []
    for number in (1, 2):
        with engine.request(conninfo=conninfo(number)) as conn:
            pids.append(conn.info.backend_pid)
    slots: Slots = engine._slots
    [own, last] = slots._idle
    granted: list[Slot | None] = []
    for target in (own.target, last.target, Target(own.history)):
        waiter = Waiter(target, lambda: True)
        assert slots.ask(waiter)
        granted.append(waiter.slot)
        slots.give_back(waiter.slot)
    assert granted == [own, last, own]  # the third: of nobody's own, so the one used least recently


def test_wrong_password_opens_no_door(make_engine: Any, tenants: None) -> None:
    """The same user with another password is another tenant: it does not get the connection that is open."""
    engine = make_engine()
    with engine.request(conninfo=conninfo(1)):
        pass
    with pytest.raises(CredentialsRejected), engine.request(conninfo="user=tenant_1 password=guessed"):
        raise AssertionError("not served")
    with pytest.raises(CredentialsRejected), engine.request(conninfo="user=tenant_1"):
        raise AssertionError("not served: the settings' own password is no tenant's")


def test_request_inside_a_request(make_engine: Any, tenants: None) -> None:
    """It joins one of the same tenant, inherits it if it names none, and has a connection of its own otherwise."""
    engine = make_engine(max_size=3)
    with engine.request(conninfo=conninfo(1)) as outer:
        with engine.request() as inner:
            assert inner is outer
        with engine.request(conninfo=conninfo(1)) as inner:
            assert inner is outer
        with engine.request(join=False) as inner:
            assert inner is not outer
            assert inner.info.user == "tenant_1"
        with engine.request(conninfo=conninfo(2)) as inner:
            assert inner.info.user == "tenant_2"
            assert engine.connection is inner
        with engine.scope(conninfo="") as scope:
            assert scope.connection.info.user == "app"
        assert engine.run_transaction(working(engine, lambda conn: conn.info.user)) == "tenant_1"
        assert engine.connection is outer


def test_inner_request_for_another_waits_for_itself(make_engine: Any, tenants: None) -> None:
    """With one place for both, it is told so in time, and does not get the outer one's connection."""
    engine = make_engine(max_size=1, max_wait=0.3)
    with (
        engine.request(conninfo=conninfo(1)),
        pytest.raises(AcquireTimeout, match="all 1 connections"),
        engine.request(conninfo=conninfo(2)),
    ):
        raise AssertionError("not served")


def test_connect_by_hand(make_engine: Any, tenants: None) -> None:
    """`connect` takes a tenant, too; while its request is open, another one is an error."""
    engine = make_engine()
    assert engine.connect(conninfo=conninfo(1)).info.user == "tenant_1"
    assert engine.connect().info.user == "tenant_1"
    with pytest.raises(RuntimeError, match="a request with another conninfo is open"):
        engine.connect(conninfo=conninfo(2))
    engine.clean()
    assert engine.connect(conninfo=conninfo(2)).info.user == "tenant_2"
    engine.clean()
    assert engine.connect().info.user == "app"
    engine.clean()


def test_handler_of_a_tenant(make_engine: Any, tenants: None) -> None:
    """`with_db` takes a connection string, or asks for it with the handler's arguments."""
    engine = make_engine()

    def handler(event: Any, context: Any, conn: Any) -> Any:
        return conn.info.user

    by_event = decorated(engine, handler, conninfo=lambda event, context: conninfo(event))
    assert [by_event(number, None) for number in (1, 2, 1)] == ["tenant_1", "tenant_2", "tenant_1"]
    assert decorated(engine, handler, conninfo=conninfo(3))({}, None) == "tenant_3"
    assert decorated(engine, handler, conninfo=lambda event, context: None)({}, None) == "app"


BAD = [
    "hunter2-secret",
    "user=tenant_1 passwort=hunter2-secret",
    "postgresql://tenant:hunter2-secret@x@host/db",
    "application_name=a:hunter2-secret",
    {"passwort": "hunter2-secret"},
    {"password": b"hunter2-secret"},
    ["hunter2-secret"],
    7,
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_bad_conninfo_is_refused_unseen(make_engine: Any, bad: Any) -> None:
    """It is named, but not shown, before anything is acquired, however often it comes."""
    engine = make_engine()
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"conninfo") as caught:
            engine.request(conninfo=bad)
        assert "hunter2-secret" not in str(caught.value) + repr(vars(caught.value))
        assert caught.value.__cause__ is caught.value.__context__ is None
    assert engine.stats.connects == 0


def test_other_server_shares_no_state(
    make_engine: Any, server: PostgresServer, superuser: Any, tiny_server: PostgresServer
) -> None:
    """A server that is down or dead does not stand for another one: that is waited for, and its connections live on."""
    dead = make_conninfo(server.dsn, host="127.0.0.1", port=1)
    engine = make_engine(max_wait=0.3, down_ttl=3600)

    def attempts(conninfo: str) -> int:
        with pytest.raises(AcquireTimeout) as caught, engine.request(conninfo=conninfo):
            raise AssertionError("not served")
        return caught.value.attempts

    with engine.request() as conn:
        pid = conn.info.backend_pid
    assert attempts(dead) > 1
    assert attempts(dead) == 1  # by now it is known
    assert attempts(make_conninfo(dead, user="another")) == 1  # on the same server
    assert attempts(make_conninfo(dead, port=2)) > 1
    with engine.request(conninfo=tiny_server.dsn) as conn:
        assert conn.info.port == tiny_server.port
    with engine.request() as conn:
        assert conn.info.backend_pid == pid


def test_silent_server_condemns_its_own_connections_only(make_engine: Any, server: PostgresServer, proxy: Any) -> None:
    """Connections as old as one that lost its server in silence are closed, but not those to another server."""
    engine = make_engine(max_size=4)
    silent = proxy.reroute(server.dsn)
    with (
        engine.request(conninfo=silent),
        engine.request(conninfo=silent, join=False),
        engine.request(conninfo="") as conn,
    ):
        pid = conn.info.backend_pid
    proxy.hush(newcomers=True)
    with pytest.raises(AcquireTimeout), engine.request(conninfo=silent, deadline=3.0):
        raise AssertionError("not served")
    assert engine.stats.open == 1
    with engine.request() as conn:
        assert conn.info.backend_pid == pid


def test_tenants_do_not_pile_up(make_engine: Any, tenants: None) -> None:
    """However many tenants there were, only the latest are remembered; an open connection is still found."""
    engine = make_engine(max_size=2)
    with engine.request(conninfo=conninfo(1)) as conn:
        pid = conn.info.backend_pid
    for number in range(MOST + 10):
        engine.scope(conninfo=f"user=visitor_{number}")
    targets = engine._targets
    assert len(targets._named) <= MOST + 1
    with engine.request(conninfo=conninfo(1)) as conn:
        assert conn.info.backend_pid == pid


def test_writes_are_the_tenants_own(make_engine: Any, superuser: Any, ledger: str, tenants: None) -> None:
    """`run_transaction` for a tenant commits as that tenant."""
    engine = make_engine()
    superuser.execute(f"grant insert on {ledger} to tenant_4")
    superuser.execute(f"revoke insert on {ledger} from app")
    insert = working(engine, lambda conn: conn.execute(f"insert into {ledger} values (4)"))
    engine.run_transaction(insert, conninfo=conninfo(4))
    assert entries(superuser) == [4]


def test_census_of_a_tenant(make_engine: Any, tenants: None) -> None:
    """The census can be asked for as a tenant, whose limits may be others."""
    assert make_engine().census(conninfo=conninfo(5)).used > 0


def test_test_tool_refuses_tenants(server: PostgresServer, tenants: None) -> None:
    """`rolled_back` has one connection, and hands it to no tenant."""
    from serverless_pg_kit import Engine

    engine = Engine(conninfo=server.dsn)
    with (
        rolled_back(engine),
        pytest.raises(RuntimeError, match="another conninfo"),
        engine.request(conninfo=conninfo(1)),
    ):
        raise AssertionError("not served")
    engine.close()


def test_address_is_replaced_as_a_whole(server: PostgresServer, make_engine: Any) -> None:
    """A tenant's host does not get the port of the settings' server, nor its password."""
    assert conninfo_to_dict(server.dsn)["port"] != "5432"
    engine = make_engine(max_wait=0)
    with pytest.raises(AcquireTimeout, match="5432"), engine.request(conninfo="host=localhost"):
        raise AssertionError("not served")
