"""The end of a request: the outcome of COMMIT, and of work that was left open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from blocking import decorated
from support import entries, eventually

from serverless_pg_kit import CommitUnknown, Engine, TransactionFailed
from serverless_pg_kit.events import Committed, Connected, Event, Leased
from serverless_pg_kit.slots import Slot, Slots


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


@pytest.fixture
def slow_commit(superuser: Any) -> Iterator[None]:
    """Let each COMMIT after an insert into the table ``audit`` wait for a lock that `superuser` holds."""
    superuser.execute("drop table if exists audit; create table audit (x int); grant all on audit to app")
    superuser.execute(
        """create or replace function wait_for_lock() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(77); return null; end $$"""
    )
    superuser.execute(
        """create constraint trigger slow after insert on audit deferrable initially deferred
           for each row execute function wait_for_lock()"""
    )
    superuser.execute("select pg_advisory_lock(77)")
    yield
    superuser.execute("select pg_advisory_unlock_all()")


def test_session_killed_during_commit_is_unknown(make_engine: Any, superuser: Any, slow_commit: None) -> None:
    """A connection cut while COMMIT runs is the one case in which nobody can know."""
    engine = make_engine()
    waits = "select 1 from pg_stat_activity where pid = %s and wait_event = 'advisory'"

    def cut_in_mid_commit(pid: int, descriptor: int) -> None:
        assert eventually(lambda: superuser.execute(waits, [pid]).fetchone() == (1,))
        cut_line(descriptor)

    def body() -> None:
        with engine.request() as conn:
            conn.execute("insert into audit values (1)")
            threading.Thread(target=cut_in_mid_commit, args=(conn.info.backend_pid, conn.fileno())).start()

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


def in_a_block(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` in the plain form of a request."""
    with engine.request() as conn:
        work(conn)


def by_hand(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` between connect() and clean()."""
    work(engine.connect())
    engine.clean()


def with_answer_404(engine: Engine, work: Callable[[psycopg.Connection[Any]], object]) -> None:
    """Do `work` in a handler that answers that something was not found."""

    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> dict[str, int]:
        work(conn)
        return {"statusCode": 404}

    decorated(engine, handler)({}, None)


@pytest.mark.parametrize("form", [in_a_block, by_hand, with_answer_404])
@pytest.mark.parametrize("leave_open", [open_copy, open_stream, open_pipeline])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_work_left_open_is_told_and_dropped(
    make_engine: Any, superuser: Any, ledger: str, leave_open: Any, form: Any
) -> None:
    """A COPY, stream or pipeline left open cannot be committed: the caller hears it, whatever it answers itself."""
    engine = make_engine()
    kept: list[Any] = []

    def work(conn: psycopg.Connection[Any]) -> None:
        conn.execute("insert into ledger values (1)")
        kept.append(leave_open(conn))

    with pytest.raises(TransactionFailed):
        form(engine, work)
    assert entries(superuser) == []
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 2


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


def close_elsewhere(engine: Engine) -> None:
    """Close `engine` in another thread, and wait for that."""
    closer = threading.Thread(target=engine.close)
    closer.start()
    closer.join(10)
    assert not closer.is_alive()


def check_closed_in_time(engine: Engine, superuser: Any) -> None:
    """Check that a request during which `engine` is closed is committed, and that its connection is not kept."""
    with engine.request() as conn:
        conn.execute("insert into ledger values (1)")
    assert conn.closed
    assert (engine.stats.open, engine.stats.in_use, engine.stats.connects) == (0, 0, 1)
    assert entries(superuser) == [1]
    with engine.request() as other:
        assert other.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 2


@pytest.mark.parametrize("moment", [Connected, Leased, Committed])
def test_engine_that_is_closed_by_another_thread_keeps_nothing(
    make_engine: Any, superuser: Any, ledger: str, moment: type[Event]
) -> None:
    """Whether a request has just begun, is about to give its connection back, or has just done so."""
    seen: list[Event] = []

    def listen(event: Event) -> None:
        if isinstance(event, moment) and not seen:
            seen.append(event)
            close_elsewhere(engine)

    engine = make_engine(on_event=listen)
    check_closed_in_time(engine, superuser)
    assert seen


def test_engine_that_is_closed_at_the_last_moment_keeps_nothing(
    make_engine: Any, superuser: Any, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all that a request's end looks at, and before its connection is among the idle ones."""
    engine = make_engine()
    give_back = Slots.give_back
    seen: list[Slot | None] = []

    def late(slots: Slots, slot: Slot | None) -> bool:
        if not seen:
            close_elsewhere(engine)
        seen.append(slot)
        return give_back(slots, slot)

    monkeypatch.setattr(Slots, "give_back", late)
    check_closed_in_time(engine, superuser)


@pytest.mark.parametrize("decision", ["_lease", "_reap_order"])
def test_failing_decision_about_room_costs_no_commit(
    make_engine: Any, superuser: Any, ledger: str, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    """The kit's own mistake is an event: the request is committed, its place is given back, and the next is served."""

    def fail(*values: Any) -> None:
        raise LookupError("the kit's own mistake")

    engine = make_engine(max_size=1, max_wait=1)
    with monkeypatch.context() as patch, engine.request() as conn:
        conn.execute("insert into ledger values (1)")
        patch.setattr(engine, decision, fail)
    assert entries(superuser) == [1]
    assert engine.stats.in_use == 0
    assert engine.stats.maintenance_failures > 0
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
