from __future__ import annotations

import math

import pytest

from serverless_pg_kit.decisions.deadline import ORPHAN_GRACE, deadline_after, request_budget, server_timeouts


class FakeClock:
    """A clock that stands still until it is moved."""

    time = 100.0

    def __call__(self) -> float:
        return self.time


def test_deadline_counts_down_to_zero() -> None:
    """What remains shrinks with time and never becomes negative."""
    clock = FakeClock()
    deadline = deadline_after(3.0, clock)
    clock.time += 2
    assert deadline.remaining() == pytest.approx(1.0)
    clock.time += 2
    assert deadline.remaining() == 0.0


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_no_limit_remains_none(seconds: float | None) -> None:
    """``None`` and infinity both mean that there is no limit."""
    assert deadline_after(seconds, FakeClock()).remaining() == math.inf


def test_within_takes_the_earlier_moment() -> None:
    """A step may have less time than the whole, never more."""
    deadline = deadline_after(3.0, FakeClock())
    assert deadline.within(1.0).remaining() == pytest.approx(1.0)
    assert deadline.within(9.0).remaining() == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("milliseconds", "budget"), [(3000, 2.5), (600, 0.3), (1, 0.0005), (0, None), (-5, None), (None, None)]
)
def test_budget_keeps_time_for_the_answer(milliseconds: float | None, budget: float | None) -> None:
    """The margin is kept, but never more than half; no remaining time means that it is unknown."""
    assert request_budget(milliseconds, 0.5) == budget


def test_outer_timeouts_exceed_the_statements() -> None:
    """The statement is cancelled with an error the handler can catch before the session is ended."""
    timeouts = server_timeouts(2.5)
    assert timeouts.statement == 2500
    assert timeouts.idle_in_transaction == timeouts.transaction == 2500 + ORPHAN_GRACE


def test_without_deadline_the_server_keeps_its_own() -> None:
    """No limit sets nothing; a limit of almost nothing is still one (0 would switch it off)."""
    assert server_timeouts(math.inf).statement == 0
    assert server_timeouts(0.0).statement == 1
