from __future__ import annotations

import pytest

from serverless_pg_kit.decisions.census import Census
from serverless_pg_kit.decisions.cleaning import AGE_FLOOR, Reap, Strategy, plan_reap, report_room


def census(used: int) -> Census:
    """Return a census of a server with 100 slots, `used` of them in use."""
    return Census(100, None, None, used, used, used, used, used - 1)


def plan(
    used: int = 81, strategy: Strategy = "minimum_idle_time", idle: float = 0.5, kills: int | None = None
) -> Reap | None:
    """Return the plan at 80 % utilization."""
    return plan_reap(census(used), conn_utilization=0.8, strategy=strategy, min_idle_time=idle, max_kills=kills)


@pytest.mark.parametrize("strategy", ["minimum_idle_time", "ranked", "none"])
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
    report = report_room(census(used), 0.8, killed)
    assert (report.decision, report.killed) == (decision, killed)
    assert f"{used}%" in report.reason
