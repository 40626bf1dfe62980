"""The database backend: where the ORM's connections come from and go to."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    InterfaceError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.utils import load_backend
from django.test import override_settings
from django_site.models import Entry
from django_site.views import backend
from poolers import PgBouncer
from proxy import Proxy
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo
from support import eventually, in_child, kill, sessions

import serverless_pg_kit_django.base
from serverless_pg_kit import AcquireTimeout
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_django import engine_for

Numbers = Callable[[], list[int]]
Superuser = psycopg.Connection[Any]

STATE = "select current_setting('timezone'), current_user, current_setting('search_path'), current_setting('jit')"


def state() -> tuple[Any, ...]:
    """Return what a session starts from."""
    with connection.cursor() as cursor:
        cursor.execute(STATE)
        found: tuple[Any, ...] = cursor.fetchone()
        return found


def close_pool() -> None:
    """Close the idle connections to the present database, as Django does before it drops one."""
    wrapper: Any = connection
    wrapper.close_pool()


def request_over() -> None:
    """Do what Django does when a request begins and when it has ended."""
    close_old_connections()


def test_reused_across_requests(site: Any) -> None:
    """Requests use one session after the other, and count as the engine's."""
    pids = []
    for _ in range(5):
        pids.append(backend())
        request_over()

    assert len(set(pids)) == 1
    assert (engine_for().stats.connects, engine_for().stats.reuses) == (1, 4)


def test_reused_across_threads(site: Any, superuser: Superuser, fleet: str) -> None:
    """A thread that ends gives its connection back, although nobody closed it."""
    for _ in range(30):
        thread = threading.Thread(target=backend)
        thread.start()
        thread.join()

    assert engine_for().stats.in_use == 0
    assert len(sessions(superuser, fleet)) == 1


def test_conn_max_age_none(site: Any) -> None:
    """Whatever CONN_MAX_AGE says, a connection goes back when its request is over, and is kept."""
    for age in (None, 600, 0):
        site(CONN_MAX_AGE=age)
        backend()
        request_over()
        assert connection.connection is None
        assert (engine_for().stats.open, engine_for().stats.in_use) == (1, 0)


def test_state_restored(site: Any, superuser: Superuser) -> None:
    """Time zone, role and isolation level are Django's in every request, whatever the one before did."""
    superuser.execute("drop role if exists assumed; create role assumed; grant assumed to app")
    site(TIME_ZONE="Asia/Tokyo", options={"assume_role": "assumed", "isolation_level": IsolationLevel.SERIALIZABLE})
    for _ in range(4):
        assert state() == ("Asia/Tokyo", "assumed", '"$user", public', "on")
        assert connection.connection.isolation_level is IsolationLevel.SERIALIZABLE
        with connection.cursor() as cursor:
            cursor.execute("set timezone = 'Europe/Paris'; reset role; set search_path = nowhere; set jit = off")
        connection.connection.isolation_level = None
        request_over()

    assert engine_for().stats.connects == 1


def test_state_flights(site: Any, server: PostgresServer, proxy: Proxy, superuser: Superuser) -> None:
    """A request costs two round trips besides its statements: neither time zone nor role takes one of its own."""
    superuser.execute("drop role if exists assumed; create role assumed; grant assumed to app")
    site(proxy.reroute(server.dsn), TIME_ZONE="Asia/Tokyo", options={"assume_role": "assumed"})
    for _ in range(2):
        backend()
        request_over()
    with proxy.counting() as traffic:
        backend()
        request_over()

    assert traffic.flights == 3


def test_state_behind_pooler(site: Any) -> None:
    """Where sessions are a pooler's, Django sets time zone and role itself, as its own backend does."""
    site(TIME_ZONE="Asia/Tokyo", serverless={"pooler": "pgbouncer"})
    for _ in range(2):
        assert state()[0] == "Asia/Tokyo"
        request_over()


def test_pgbouncer(site: Any, server: PostgresServer, numbers: Numbers) -> None:
    """Through a real pooler in transaction mode, more threads than it has sessions are served, each in its own
    transaction, in Django's time zone."""
    with PgBouncer(server, pool_mode="transaction", default_pool_size=2) as pooler:
        site(
            make_conninfo(server.dsn, host="127.0.0.1", port=pooler.port),
            TIME_ZONE="Asia/Tokyo",
            DISABLE_SERVER_SIDE_CURSORS=True,
        )
        seen: list[Any] = []

        def serve(number: int) -> None:
            with transaction.atomic():
                Entry.objects.create(number=number)
                seen.append(state()[0])
            seen.extend(Entry.objects.filter(number=number).iterator())
            request_over()

        threads = [threading.Thread(target=serve, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        connection.close()
        close_pool()

    assert seen.count("Asia/Tokyo") == 8
    assert len(seen) == 16
    assert numbers() == list(range(8))


def test_adapters(site: Any) -> None:
    """Values come as from Django's own backend: JSON and networks as text, times in Django's zone, client binding."""
    with connection.cursor() as cursor:
        cursor.execute("select '{}'::jsonb, '10.0.0.1'::inet, '2026-01-01 00:00+00'::timestamptz")
        own = cursor.fetchone()
        kind = type(cursor.cursor)
    with connections["stock"].cursor() as cursor:
        cursor.execute("select '{}'::jsonb, '10.0.0.1'::inet, '2026-01-01 00:00+00'::timestamptz")
        assert own == cursor.fetchone()
        assert kind is type(cursor.cursor)
    assert connection.connection.prepare_threshold is connections["stock"].connection.prepare_threshold is None


def test_killed_between_requests(site: Any, table: type[Entry], superuser: Superuser, fleet: str) -> None:
    """A connection that was killed while it was idle is replaced unseen."""
    backend()
    request_over()
    kill(superuser, *sessions(superuser, fleet))

    assert Entry.objects.count() == 0


def test_killed_in_atomic(numbers: Numbers, superuser: Superuser) -> None:
    """A request that loses its connection hears of it as Django's error; nothing is committed or done again."""
    runs: list[Entry] = []

    def work() -> None:
        with transaction.atomic():
            runs.append(Entry.objects.create(number=len(runs)))
            kill(superuser, int(backend()))
            Entry.objects.create(number=99)

    with pytest.raises(OperationalError):
        work()
    request_over()

    assert len(runs) == 1
    assert numbers() == []
    assert Entry.objects.count() == 0


def test_restart(site: Any, table: type[Entry]) -> None:
    """A server that restarts between two requests is waited for."""
    with PostgresServer(max_connections=10) as own:
        site(own.dsn)
        backend()
        request_over()
        own.restart()
        assert backend()
        connection.close()
        close_pool()


def test_full_server(site: Any, tiny_server: PostgresServer) -> None:
    """A full server is waited for, up to ``max_wait``; then the error is Django's, and the kit's is its cause."""
    site(tiny_server.dsn, serverless={"max_wait": 0.3})
    others = [psycopg.connect(tiny_server.dsn) for _ in range(5)]
    with pytest.raises(OperationalError) as caught:
        backend()
    assert isinstance(caught.value.__cause__, AcquireTimeout)

    site(tiny_server.dsn, serverless={"max_wait": 30.0})
    timer = threading.Timer(0.3, others[0].close)
    timer.start()
    assert backend()
    timer.join()
    for other in others:
        other.close()


def test_close_in_atomic(numbers: Numbers) -> None:
    """A connection closed inside an atomic block is rolled back and gone for the block; the next one is served."""
    with transaction.atomic():
        Entry.objects.create(number=1)
        connection.close()
        with pytest.raises(ProgrammingError, match="Cannot open a new connection in an atomic block"):
            backend()

    assert numbers() == []
    assert backend()


def test_autocommit_left_off(numbers: Numbers) -> None:
    """What a request has not committed is rolled back; the next one starts in autocommit mode."""
    transaction.set_autocommit(False)
    Entry.objects.create(number=1)
    request_over()

    assert transaction.get_autocommit()
    assert numbers() == []


def test_server_side_cursor_left_open(table: type[Entry]) -> None:
    """An iterator that was not read to its end is over with its request, and does not reach the next one's session."""
    Entry.objects.bulk_create(Entry(number=number) for number in range(50))
    iterator = Entry.objects.iterator(chunk_size=2)
    next(iterator)
    request_over()
    with transaction.atomic():
        backend()
        with pytest.raises(InterfaceError, match="the cursor is closed"):
            list(iterator)
        assert Entry.objects.count() == 50
    assert engine_for().stats.connects == 1


def test_cursor_kept(site: Any) -> None:
    """A cursor that somebody kept from an earlier request is closed."""
    cursor = connection.cursor()
    request_over()
    backend()

    with pytest.raises(InterfaceError, match="the cursor is closed"):
        cursor.execute("select 1")


def test_connection_created(site: Any) -> None:
    """The signal comes with each request's connection, and what its receivers set holds for that request."""
    seen = []

    def prepare(connection: Any, **kwargs: Any) -> None:
        seen.append(connection.alias)
        with connection.cursor() as cursor:
            cursor.execute("set search_path = tenant")

    connection_created.connect(prepare)
    try:
        for _ in range(2):
            assert state()[2] == "tenant"
            request_over()
    finally:
        connection_created.disconnect(prepare)

    assert seen == ["default", "default"]
    assert state()[2] == '"$user", public'


def test_two_databases(numbers: Numbers) -> None:
    """Each database has an engine of its own."""
    with transaction.atomic(), transaction.atomic("replica"):
        Entry.objects.create(number=1)
        assert Entry.objects.using("replica").count() == 0
    assert engine_for("replica") is not engine_for("default")
    assert engine_for("replica") is engine_for("replica")


def test_forked(site: Any, table: type[Entry]) -> None:
    """The child of a process that held a connection takes one of its own; the parent's is left alone."""
    before = backend()

    def child() -> None:
        assert backend() != before
        request_over()
        assert backend()

    in_child(child)
    assert backend() == before


def test_forked_beside_a_thread(site: Any) -> None:
    """A fork ends the parent's other threads in the child: their connections are left alone there."""
    held, forked = threading.Event(), threading.Event()
    seen: list[Any] = []

    def hold() -> None:
        with connection.cursor() as cursor:
            cursor.execute("set search_path = nowhere")
        held.set()
        forked.wait(30)
        seen.append(state()[2])

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    in_child(backend)
    forked.set()
    thread.join()

    assert seen == ["nowhere"]


def test_other_backend(site: Any) -> None:
    """The engine goes under any backend that is made of Django's PostgreSQL one."""
    with override_settings(SERVERLESS_PG_BACKEND="django_site.other"):
        wrapper = importlib.reload(serverless_pg_kit_django.base).DatabaseWrapper({**connection.settings_dict})
    importlib.reload(serverless_pg_kit_django.base)
    assert wrapper.display_name == "PostgreSQL and more"
    with wrapper.cursor() as cursor:
        cursor.execute("select 1")
    assert engine_for().stats.in_use == 1
    wrapper.close()
    request_over()
    assert engine_for().stats.in_use == 0


def test_max_size(site: Any, server: PostgresServer) -> None:
    """200 requests over 20 threads take ``max_size`` connections, and all are served."""
    site(serverless={"max_size": 4, "max_wait": 60.0})
    pids, failures = set(), []

    def serve() -> None:
        for _ in range(10):
            try:
                pids.add(backend())
            except OperationalError as error:
                failures.append(error)
            request_over()

    threads = [threading.Thread(target=serve) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(pids) <= 4
    assert engine_for().stats.open <= 4


def test_close_pool(site: Any, server: PostgresServer, superuser: Superuser) -> None:
    """A database can be dropped once its pool is closed: no engine of the process holds a session there."""
    superuser.execute("drop database if exists scratch")
    superuser.execute("create database scratch owner app")
    params = server.dsn_for(dbname="scratch")
    site(params)
    backend()
    connections["replica"].ensure_connection()
    connections.close_all()
    close_pool()

    assert eventually(lambda: sessions_on(superuser, "scratch") == 0)
    superuser.execute("drop database scratch")


def sessions_on(superuser: Superuser, database: str) -> int:
    """Return how many sessions a database has."""
    row = superuser.execute("select count(*) from pg_stat_activity where datname = %s", [database]).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"serverless": {"max_wiat": 3}}, "max_wiat=3: there is no such setting; did you mean max_wait"),
        ({"serverless": {"max_size": 0}}, "max_size=0 is not allowed"),
        ({"serverless": {"conninfo": "password=s3cret"}}, "conninfo is made of NAME, HOST, USER and OPTIONS"),
        ({"serverless": "lease=3"}, "has to be a dictionary of settings, not str"),
    ],
)
def test_bad_settings(site: Any, options: dict[str, Any], told: str) -> None:
    """A bad setting is refused when the wrapper is made, which the app does at start-up; secrets are not shown."""
    settings = {**connections.settings["default"], "OPTIONS": options}
    with pytest.raises(ImproperlyConfigured, match=told) as caught:
        load_backend("serverless_pg_kit_django").DatabaseWrapper(settings)

    assert "s3cret" not in str(caught.value)


def test_unknown_option(site: Any) -> None:
    """A parameter that libpq does not know is told by name, as by Django's own backend."""
    site(options={"frobnicate": "1"})
    with pytest.raises(ProgrammingError, match="frobnicate"):
        backend()


def test_settings_everywhere(site: Any, settings_kit: Any) -> None:
    """SERVERLESS_PG holds for all databases, OPTIONS['serverless'] comes before it."""
    settings_kit({"max_size": 7, "max_wait": 3.0})
    site(serverless={"max_size": 8})

    assert (engine_for().settings.max_size, engine_for().settings.max_wait) == (8, 3.0)
    assert engine_for("stock").settings.max_size == 7


def test_celery_like_worker(site: Any) -> None:
    """A worker that closes old connections around each task holds none between two of them."""
    for _ in range(3):
        close_old_connections()
        backend()
        close_old_connections()
        assert engine_for().stats.in_use == 0
    assert engine_for().stats.connects == 1
