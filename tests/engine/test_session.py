"""The connection object: whatever a request leaves on it, the next one finds it as it was before the first."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import psycopg
import pytest
from blocking import naked
from psycopg.pq import Format
from psycopg.types.string import TextLoader
from support import SYNC_ONLY, settable

from serverless_pg_kit import Engine, session
from serverless_pg_kit.session import ATTRIBUTES, drivers_names

INT8 = 20
"""The type's number in PostgreSQL."""


class Keeping:
    """Makes of a connection's class one that keeps things on itself, as one for several tenants may do."""

    def __init__(self, *args: Any, **names: Any) -> None:
        super().__init__(*args, **names)
        self.tenant = "nobody"
        self._secret: str | None = None
        self.seen: list[str] = []


class OwnConnection(Keeping, psycopg.Connection[Any]):
    """For an engine that blocks."""


class OwnAsyncConnection(Keeping, psycopg.AsyncConnection[Any]):
    """For one that does not."""


@pytest.fixture
def own_class(shell: Any) -> type[Any]:
    """A class of one's own for each shell."""
    return OwnConnection if shell is Engine else OwnAsyncConnection


WATCH = {"wait"}
"""What the kit itself puts on a connection for the length of a request that is watched, as async ones always are."""


def own_attributes(conn: Any) -> dict[str, Any]:
    """Return what is on `conn` besides that which psycopg and the kit keep there."""
    return {name: value for name, value in vars(naked(conn)).items() if name not in drivers_names() | WATCH}


def end_one(engine: Engine, ending: str, work: Callable[[Any], None]) -> None:
    """Do `work` with the connection of a request, and let that end."""
    with engine.scope() as scope:
        work(scope.connection)
        if ending == "rollback":
            scope.fail()


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_attributes_of_a_class_of_ones_own_are_put_back(make_engine: Any, own_class: type[Any], ending: str) -> None:
    """Public and private ones: those that were there have their values again, new ones are gone."""

    def leave(conn: Any) -> None:
        conn.tenant, conn._secret = "a", "b"
        conn.fresh, conn._fresh = "c", "d"
        del conn.seen

    engine = make_engine(connection_class=own_class)
    with engine.request() as first:
        before = own_attributes(first)
    assert before.keys() == {"tenant", "_secret", "seen"}
    for _ in range(3):
        end_one(engine, ending, leave)
        with engine.request() as conn:
            assert conn is first
            assert own_attributes(conn) == before
            assert conn.seen is before["seen"]


def test_attributes_by_configure_are_what_requests_start_from(make_engine: Any, own_class: type[Any]) -> None:
    """`configure` may hang things on the object, and overrule what its class did."""

    def configure(conn: Any) -> None:
        conn.tenant, conn._shard = "b", 3

    def leave(conn: Any) -> None:
        conn.tenant = "a"
        del conn._shard

    engine = make_engine(connection_class=own_class, configure=configure)
    for _ in range(3):
        with engine.request() as conn:
            assert (conn.tenant, conn._shard) == ("b", 3)
            leave(conn)
    assert engine.stats.connects == 1


@SYNC_ONLY  # an async connection is watched always
@pytest.mark.parametrize("talks", [False, True])
def test_wait_of_ones_own_stays(make_engine: Any, talks: bool) -> None:
    """What a connection waits with by `configure` is there again after requests that are watched."""
    own: list[Any] = []

    def configure(conn: Any) -> None:
        if not own:
            own.append(functools.partial(type(conn).wait, conn))
        conn.wait = own[0]
        if talks:
            conn.execute("set work_mem = '7MB'")
            conn.commit()

    engine = make_engine(configure=configure)
    for number in range(30):
        deadline = None if number % 3 == 2 else 30.0
        with engine.request(deadline=deadline) as conn:
            conn.execute("select 1")
            assert (conn.wait is own[0]) == (deadline is None)
    assert engine.stats.connects == 1


def test_what_psycopg_keeps_is_known(make_engine: Any) -> None:
    """No more and no less than what stands on a connection of its own class: that is not the reset's business."""
    with make_engine().request() as conn:
        assert vars(naked(conn)).keys() - WATCH == drivers_names()


@SYNC_ONLY  # the attributes of async connections cannot be set at all
def test_what_psycopg_lets_a_request_change_is_known(make_engine: Any) -> None:
    """No public attribute of a connection that can be set is missing among those that are put back."""
    with make_engine().request() as conn:
        assert settable(conn).keys() - set(ATTRIBUTES) == {"lock", "pgconn"}


def test_what_psycopg_keeps_is_left_alone(make_engine: Any, own_class: type[Any]) -> None:
    """Its lock, its libpq connection and its prepared statements are the same through all requests."""
    engine = make_engine(connection_class=own_class)
    with engine.request() as conn:
        conn.execute("select 1", prepare=True)
        conn.tenant = "a"
        kept = conn.lock, conn.pgconn, conn._prepared
    with engine.request() as conn:
        assert (conn.lock, conn.pgconn, conn._prepared) == kept
        assert conn._prepared._names


class Depth(TextLoader):
    """A loader that tells how often it was put over another."""

    times = 1


def put_over(conn: psycopg.Connection[Any]) -> None:
    """Register a loader that builds on the one that is there."""
    present = conn.adapters.get_loader(INT8, Format.TEXT)
    times = present.times + 1 if present is not None and issubclass(present, Depth) else 1
    conn.adapters.register_loader("int8", type("Deeper", (Depth,), {"times": times}))


def add(conn: Any) -> None:
    """Do what adds to that which is there, if it is done twice."""
    conn.add_notice_handler(print)
    conn.add_notify_handler(print)
    put_over(conn)
    conn.times = getattr(conn, "times", 0) + 1


def added(conn: Any) -> tuple[int, int, int, int]:
    """Return how often `add` was done; besides, a connection has the kit's own notice handler."""
    loader = conn.adapters.get_loader(INT8, Format.TEXT)
    return len(conn._notice_handlers) - 1, len(conn._notify_handlers), loader.times, conn.times


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("talks", [True, False])
@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_configure_adds_nothing_twice(make_engine: Any, ending: str, talks: bool, reset: bool) -> None:
    """However often it is called, each request has its handlers, adapters and attributes once."""
    found: list[tuple[int, int, int, int]] = []

    def configure(conn: Any) -> None:
        add(conn)
        if talks:
            conn.execute("set work_mem = '7MB'")
            conn.commit()

    def use(conn: Any) -> None:
        found.append(added(conn))
        add(conn)

    engine = make_engine(configure=configure, reset=reset)
    for _ in range(5):
        end_one(engine, ending, use)
    assert found == [(1, 1, 1, 1)] * 5
    assert engine.stats.connects == 1


def test_connection_that_was_left_alone_is_not_put_back(make_engine: Any) -> None:
    """The usual request changes nothing on the object: one look tells so."""
    engine = make_engine()
    for _ in range(2):
        with engine.request() as conn:
            conn.execute("select 1")
    [slot] = engine._slots._idle
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename == session.__file__:
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        slot.baseline.restore(slot.conn)
    finally:
        sys.setprofile(None)
    assert calls == ["restore", "is_kept"]
