"""Requests by WSGI and ASGI, driven as servers drive them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import psycopg
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django_site.models import Entry
from django_site.web import aget, aget_all, get, wsgi
from psycopg import sql
from support import eventually, is_working, kill, sessions

from serverless_pg_kit_django import engine_for
from serverless_pg_kit_django.middleware import ServerlessPgMiddleware

Numbers = Callable[[], list[int]]
Superuser = psycopg.Connection[Any]


class Invocation:
    """A Lambda context."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left of the invocation."""
        return self.milliseconds


@pytest.mark.parametrize("path", ["/pid", "/apid", "/stream"])
def test_wsgi_reuses(table: type[Entry], path: str) -> None:
    """Plain, async and streamed answers over WSGI use one session, and hold none between two requests."""
    pids = set()
    for _ in range(5):
        answer = get(path)
        assert answer.status == 200
        pids |= set(answer.body.split())
        assert engine_for().stats.in_use == 0

    assert len(pids) == 1


def test_asgi_many(site: Any, table: type[Entry], superuser: Superuser, fleet: str) -> None:
    """1,000 requests over ASGI, 20 at a time, leave at most ``max_size`` connections, and all are served."""
    site(CONN_MAX_AGE=None, serverless={"max_size": 5, "max_wait": 60.0})
    paths = ["/pid", "/apid", "/astream"]
    answers = aget_all(paths[number % 3] for number in range(1000))

    assert [answer.status for answer in answers] == [200] * 1000
    assert len({pid for answer in answers for pid in answer.body.split()}) <= 5
    assert len(sessions(superuser, fleet)) <= 5
    assert engine_for().stats.in_use == 0


def test_failed_view(numbers: Numbers) -> None:
    """A view that fails is rolled back by its atomic block, and answers 500."""
    assert get("/fail/1").status == 500
    assert get("/add/2").status == 200
    assert numbers() == [2]


def test_atomic_requests(site: Any, numbers: Numbers) -> None:
    """ATOMIC_REQUESTS holds the view in one transaction, ``request.db`` in it."""
    site(ATOMIC_REQUESTS=True)
    assert get("/raw/1/200").status == 200
    assert get("/add/1").status == 500
    assert numbers() == [1]


@pytest.mark.parametrize("lost", [0, 1])
def test_killed_in_request(numbers: Numbers, superuser: Superuser, fleet: str, lost: int) -> None:
    """A request whose connection is killed answers 500 and is not committed; the next one is served."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(get("/atomic/1?seconds=30").status))
    thread.start()
    assert eventually(lambda: is_working(superuser, fleet))
    kill(superuser, *sessions(superuser, fleet))
    thread.join()

    assert answers == [500]
    assert numbers() == []
    assert get("/add/7").status == 200


def test_request_db_shares(numbers: Numbers) -> None:
    """On the kit's backend ``request.db`` is the ORM's connection: one for a request."""
    assert get("/raw/1/200").body == get("/pid").body
    assert numbers() == [1]


def test_request_db_is_a_connection(site: Any) -> None:
    """``request.db`` passes for what it stands for, and acquires nothing before it is touched."""
    request = RequestFactory().get("/pid")
    seen: list[Any] = []

    def view(request: Any) -> HttpResponse:
        seen.append((engine_for().stats.in_use, isinstance(request.db, psycopg.Connection), repr(request.db)))
        request.db.autocommit = False
        seen.append((engine_for().stats.in_use, connection.connection.autocommit))
        return HttpResponse(sql.Literal(1).as_string(request.db))

    assert ServerlessPgMiddleware(view)(request).content == b"1"
    assert seen == [(0, True, "<the connection of this request, acquired when it is touched>"), (1, False)]


def test_asgi_client_gone(table: type[Entry], superuser: Superuser, fleet: str) -> None:
    """A client that hangs up in the middle of a view leaves no connection behind."""
    assert asyncio.run(aget(ASGIHandler(), "/sleep/0.5", hangs_up_after=0.2)).status == 0
    assert eventually(lambda: engine_for().stats.in_use == 0)
    assert get("/add/1").status == 200


@pytest.fixture
def on_stock(site: Any, monkeypatch: pytest.MonkeyPatch, settings_kit: Any, fleet: str) -> None:
    """Lets the middleware serve a database on Django's own backend."""
    settings_kit({"application_name": fleet})
    monkeypatch.setattr(ServerlessPgMiddleware, "using", "stock")


@pytest.mark.parametrize(("status", "kept"), [(200, True), (404, True), (500, False)])
def test_request_db_beside_stock(on_stock: None, numbers: Numbers, status: int, kept: bool) -> None:
    """Beside Django's backend ``request.db`` is a transaction of the engine's that ends with the request."""
    assert get(f"/raw/1/{status}").status == status
    assert numbers() == [1] * kept
    assert (engine_for("stock").stats.connects, engine_for("stock").stats.in_use) == (1, 0)
    assert engine_for("stock").stats.censuses == 1


def test_request_db_commit_fails(on_stock: None, numbers: Numbers) -> None:
    """A COMMIT that the server refuses changes the answer: the body has not been sent by then."""
    assert get("/raw/1/200").status == 200
    assert get("/raw/1/200").status == 500  # the constraint is deferred
    assert numbers() == [1]


def test_request_db_streams(on_stock: None, numbers: Numbers) -> None:
    """A streamed body uses ``request.db``, which ends after the last part."""
    assert get("/rawstream").body == b"..."
    assert numbers() == [0, 1, 2]
    assert engine_for("stock").stats.in_use == 0


def test_request_db_stream_broken_off(on_stock: None, numbers: Numbers) -> None:
    """A body that nobody reads to its end is rolled back."""

    def read(body: Iterable[bytes]) -> bytes:
        return next(iter(body))

    assert wsgi(WSGIHandler(), "/rawstream", read, {}).body == b"."
    assert numbers() == []
    assert (engine_for("stock").stats.open, engine_for("stock").stats.in_use) == (1, 0)


def test_request_db_stream_fails(on_stock: None, numbers: Numbers) -> None:
    """A body that fails is rolled back, and its server hears of it."""
    with pytest.raises(ZeroDivisionError):
        get("/rawstream?fails")
    assert numbers() == []
    assert (engine_for("stock").stats.open, engine_for("stock").stats.in_use) == (1, 0)


@pytest.mark.parametrize("path", ["/raw/1/200", "/rawastream"])
def test_request_db_asgi(on_stock: None, numbers: Numbers, path: str) -> None:
    """Over ASGI, too."""
    assert [answer.status for answer in aget_all([path])] == [200]
    assert numbers()
    assert engine_for("stock").stats.in_use == 0


def test_request_db_async_view(on_stock: None, site: Any) -> None:
    """An async view that would block its event loop is told so, as by the ORM."""
    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True), pytest.raises(Exception, match=r"request\.db blocks"):
        get("/asyncdb")


@pytest.mark.parametrize("key", ["apig_wsgi.context", "aws.context"])
def test_deadline_from_lambda(table: type[Entry], key: str) -> None:
    """The remaining time of a Lambda invocation ends a statement, in time for an answer; the next request is served."""
    context: dict[str, Any] = {key: Invocation(1000)}
    if key == "aws.context":
        assert asyncio.run(aget(ASGIHandler(), "/sleep/20", **context)).status == 500
    else:
        assert get("/sleep/20", **context).status == 500
    assert get("/sleep/1.2").status == 200
    with connection.cursor() as cursor:
        cursor.execute("show statement_timeout")
        assert cursor.fetchone() == ("0",)


def test_read_replica(site: Any, table: type[Entry]) -> None:
    """A router sends reads to another database: its connections end with the request, too."""
    with override_settings(DATABASE_ROUTERS=[Router()]):
        assert get("/add/1").status == 200
        assert Entry.objects.db == "replica"
        assert Entry.objects.count() == 1
        connections.close_all()
    assert (engine_for().stats.in_use, engine_for("replica").stats.in_use) == (0, 0)


class Router:
    """Reads from the replica, writes to the default database."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Name the replica."""
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Name the default."""
        return "default"
