"""The ordinary request: what it says is decided once, and is the same as if it were decided each time."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest

from serverless_pg_kit import Engine, Statements
from serverless_pg_kit.closing import PREPARE_AFTER, plan_close
from serverless_pg_kit.events import Leased
from serverless_pg_kit.opening import plan_open
from serverless_pg_kit.slots import Slot

REQUESTS = PREPARE_AFTER + 3
"""After so many of them a connection has settled."""


def settled(engine: Engine) -> Slot:
    """Return the idle slot of `engine` after enough requests."""
    for _ in range(REQUESTS):
        with engine.request() as conn:
            conn.execute("select 1")
    slot: Slot
    [slot] = engine._slots._idle
    return slot


@pytest.mark.parametrize("strategy", ["lease", "none"])
@pytest.mark.parametrize("remaining", [math.inf, 0.0005, 0.25, 3.0, 29.9996, 298.9])
def test_what_is_kept_ready_is_what_would_be_planned(make_engine: Any, strategy: str, remaining: float) -> None:
    """Both messages, for requests with and without a deadline, with leases and without."""
    slot = settled(make_engine(strategy=strategy))
    assert slot.routine is not None
    planned = plan_open(slot, Statements(), slot.mode, remaining, reset=True, ping=False)
    assert slot.routine.open(remaining) == planned
    closing = plan_close(slot, Statements(), commit=True, reset=True, lease=slot.lease, now=0.0)
    assert slot.routine.closing == closing
    idle_closing = plan_close(slot, Statements(), commit=False, reset=True, lease=slot.lease, now=0.0)
    assert slot.routine.idle_closing == idle_closing


def test_deadline_beyond_the_lease_is_out_of_the_ordinary(make_engine: Any) -> None:
    """Such a request has to lengthen the lease."""
    slot = settled(make_engine(lease=10.0))
    assert slot.routine is not None
    assert slot.routine.open(9.0) is not None
    assert slot.routine.open(9.1) is None


@pytest.mark.parametrize(
    "names",
    [
        {"autocommit": True},
        {"statements": type("Own", (Statements,), {})()},
    ],
)
def test_whoever_differs_has_no_routine(make_engine: Any, names: dict[str, Any]) -> None:
    """Its messages depend on what cannot be foreseen."""
    assert settled(make_engine(**names)).routine is None


def test_time_outs_of_the_role_itself_are_never_lengthened(make_engine: Any, superuser: Any) -> None:
    """A connection that has its own is planned for each time."""
    superuser.execute("alter role app set statement_timeout = '7s'")
    try:
        engine = make_engine()
        assert settled(engine).routine is None
        with engine.request(deadline=30) as conn:
            assert conn.execute("show statement_timeout").fetchone() == ("7s",)
    finally:
        superuser.execute("alter role app reset statement_timeout")


def test_requests_out_of_the_ordinary_get_what_they_ask_for(make_engine: Any) -> None:
    """Isolation level and read-only mode of one request, between ordinary ones."""
    engine = make_engine()
    settled(engine)
    mode = "select current_setting('transaction_isolation'), current_setting('transaction_read_only')"
    for _ in range(2):
        with engine.request(isolation_level=psycopg.IsolationLevel.SERIALIZABLE, read_only=True) as conn:
            assert conn.execute(mode).fetchone() == ("serializable", "on")
        with engine.request(deadline=5) as conn:
            assert conn.execute(mode).fetchone() == ("read committed", "off")


def test_lease_that_changes_ends_the_routine(make_engine: Any) -> None:
    """When room gets short, the next close sets another lease, whatever was kept ready."""
    leases: list[float] = []
    engine = make_engine(on_event=lambda event: leases.append(event.seconds) if isinstance(event, Leased) else None)
    settled(engine)
    engine._history.note_refusal()
    with engine.request() as conn:
        conn.execute("select 1")
    assert engine.stats.open == 0 or min(leases) < engine.settings.lease


def test_census_is_taken_when_it_is_due(make_engine: Any) -> None:
    """However ordinary the request."""
    engine = make_engine(census_ttl=3600.0)
    settled(engine)
    before = engine.stats.censuses
    engine._history.census_at = 0.0
    engine._look_closer()
    with engine.request() as conn:
        conn.execute("select 1")
    assert engine.stats.censuses == before + 1


def test_user_who_discards_what_is_prepared_is_served_on(make_engine: Any) -> None:
    """The messages kept ready speak of prepared statements: they are planned anew, and nobody fails."""
    engine = make_engine()
    slot = settled(engine)
    with engine.request() as conn:
        conn.execute("deallocate serverless_pg_kit_guard")
        conn.execute("deallocate serverless_pg_kit_release")
    assert slot.routine is None
    for _ in range(REQUESTS):
        with engine.request(deadline=5) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert engine.stats.connects == 1
    assert slot.routine is not None
