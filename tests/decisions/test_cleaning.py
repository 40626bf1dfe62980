from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.cleaning import AGE_FLOOR, Reap, Strategy, is_short, plan_reap, report_room, surplus


def census(used: int) -> Census:
    """Return a census of a server with 100 slots, `used` of them in use."""
    return Census(100, None, None, used, used, used, used, used - 1)


def plan(
    used: int = 81, strategy: Strategy = "minimum_idle_time", idle: float = 0.5, kills: int | None = None
) -> Reap | None:
    """Return the plan at 80 % utilization."""
    return plan_reap(
        census(used), conn_utilization=0.8, strategy=strategy, min_idle_time=idle, max_kills=kills, interval=6.0
    )


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_with_room_nobody_is_ended(strategy: Strategy) -> None:
    """Exactly the wanted utilization still counts as room."""
    assert plan(used=80, strategy=strategy) is None


def test_strategies_differ_in_the_age_they_ask_for() -> None:
    """`minimum_idle_time` spares the recently used, `ranked` only what is younger than a connect takes."""
    assert plan() == Reap(0.5, None)
    assert plan(strategy="ranked", idle=60.0) == Reap(AGE_FLOOR, None)
    assert plan(strategy="none") is None


def test_age_floor_holds_for_min_idle_time_too() -> None:
    """A `min_idle_time` of 0 does not end connections that were opened this very moment."""
    assert plan(idle=0.0) == Reap(AGE_FLOOR, None)


def test_max_kills_limits_and_zero_forbids() -> None:
    """0 kills nobody; ``None`` all that qualify."""
    assert plan(kills=5) == Reap(0.5, 5)
    assert plan(kills=0) is None


@pytest.mark.parametrize(
    ("used", "killed", "decision"), [(80, (), "kept"), (81, (7, 8), "kept"), (81, (), "yielded"), (100, (), "yielded")]
)
def test_engine_gives_up_its_own_connection_only_if_nobody_else_can_be(
    used: int, killed: tuple[int, ...], decision: str
) -> None:
    """When room is short, somebody makes room: an idle session, otherwise the engine itself."""
    report = report_room(census(used), 0.8, "minimum_idle_time", killed)
    assert (report.decision, report.killed) == (decision, killed)
    assert f"{used}%" in report.reason


def limited(used: int, role: int | None = None, database: int | None = None) -> Census:
    """Return a census in which half of the sessions are of this role, a third in this database."""
    return Census(100, role, database, used, used // 2, used // 3, 0, 0)


@pytest.mark.parametrize(
    ("census", "excess"),
    [
        (limited(80), 0),
        (limited(81), 1),
        (limited(100), 20),
        (limited(103), 23),
        (limited(60, role=40), 0),
        (limited(60, role=30), 6),
        (limited(60, database=20), 4),
        (limited(60, role=30, database=10), 12),
        (limited(90, role=50), 10),
        (limited(60, role=0), 30),
    ],
)
def test_surplus_is_what_lies_above_the_line(census: Census, excess: int) -> None:
    """It is counted at the scarcest limit: the server's, the role's or the database's."""
    assert surplus(census, 0.8) == excess


@given(
    limits=st.tuples(st.integers(1, 500), st.none() | st.integers(1, 500), st.none() | st.integers(1, 500)),
    counts=st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500)),
    percent=st.integers(1, 100),
)
def test_surplus_is_just_enough(
    limits: tuple[int, int | None, int | None], counts: tuple[int, int, int], percent: int
) -> None:
    """Without the surplus there is room again; with one session of it there is none."""
    used, role_used, database_used = max(counts), counts[1], counts[2]

    def without(ended: int) -> Census:
        return Census(*limits, used - ended, role_used - ended, database_used - ended, 0, 0)

    excess = surplus(without(0), percent / 100)
    assert not is_short(without(excess), percent / 100)
    assert excess == 0 or is_short(without(excess - 1), percent / 100)


def test_lease_ends_only_the_surplus_and_once_per_interval() -> None:
    """The others end by their leases."""
    assert plan(used=85, strategy="lease") == Reap(0.5, 5, interval=6.0)


def test_lease_heeds_max_kills_and_the_age_floor() -> None:
    """`max_kills` cuts the surplus, 0 forbids, and a `min_idle_time` of 0 does not reach new connections."""
    assert plan(used=85, strategy="lease", kills=3) == Reap(0.5, 3, interval=6.0)
    assert plan(used=85, strategy="lease", kills=50) == Reap(0.5, 5, interval=6.0)
    assert plan(used=85, strategy="lease", kills=0) is None
    assert plan(used=85, strategy="lease", idle=0.0) == Reap(AGE_FLOOR, 5, interval=6.0)


@pytest.mark.parametrize("strategy", ["minimum_idle_time", "ranked"])
def test_other_strategies_have_no_election(strategy: Strategy) -> None:
    """Who asks for all idle sessions to be ended gets it at each count."""
    reap = plan(strategy=strategy)
    assert reap is not None
    assert (reap.limit, reap.interval) == (None, 0.0)


@pytest.mark.parametrize(
    ("used", "killed", "decision"),
    [(80, (), "kept"), (99, (), "kept"), (99, (7,), "kept"), (100, (7,), "kept"), (100, (), "yielded")],
)
def test_lease_keeps_the_connection_while_there_is_any_room(used: int, killed: tuple[int, ...], decision: str) -> None:
    """Above the line its short lease makes room soon enough; an engine gives up its own only when all is full."""
    report = report_room(census(used), 0.8, "lease", killed)
    assert (report.decision, report.killed) == (decision, killed)
    assert f"{used}%" in report.reason
