from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_pg_kit.decisions.deadline import (
    ATTEMPT_SECONDS,
    LEASE_MARGIN,
    LONGEST_TIMEOUT,
    OPEN_SECONDS,
    ORPHAN_GRACE,
    attempt_seconds,
    deadline_after,
    open_seconds,
    raised_lease,
    request_budget,
    rounded_timeout,
    shorter_timeouts,
    wanted_timeouts,
)


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
    assert wanted_timeouts(2.5, 170000) == {
        "statement_timeout": 2500,
        "idle_in_transaction_session_timeout": 2500 + ORPHAN_GRACE,
        "transaction_timeout": 2500 + ORPHAN_GRACE,
    }


def test_older_servers_are_not_asked_for_what_they_lack() -> None:
    """The time-out of a whole transaction is new in 17."""
    assert "transaction_timeout" not in wanted_timeouts(2.5, 160014)


def test_without_deadline_the_server_keeps_its_own() -> None:
    """No limit sets nothing; a limit of almost nothing is still one (0 would switch it off)."""
    assert wanted_timeouts(math.inf, 180000) == {}
    assert wanted_timeouts(0.0, 180000)["statement_timeout"] == 1


@pytest.mark.parametrize(("own", "kept"), [({}, 100), ({"a": 0}, 100), ({"a": 200}, 100), ({"a": 50}, None)])
def test_a_shorter_timeout_of_the_role_stays(own: dict[str, int], kept: int | None) -> None:
    """A deadline never lengthens what a role or a database has set."""
    assert shorter_timeouts({"a": 100}, own) == ({} if kept is None else {"a": kept})


@given(lease=st.floats(0, 1e6), remaining=st.floats(0, 1e6))
def test_no_lease_ends_during_a_request(lease: float, remaining: float) -> None:
    """Whatever the lease was, in the request it reaches beyond the deadline."""
    raised = raised_lease(lease, remaining)
    in_force = lease * 1000 if raised is None else raised
    assert in_force >= (remaining + LEASE_MARGIN) * 1000 - 1


def test_without_deadline_a_lease_is_off() -> None:
    """0 switches the server's time-out off: nobody knows how long the request will pause."""
    assert raised_lease(300.0, math.inf) == 0


SECONDS = st.floats(0, 1e6)


@given(remaining=st.floats(1e-3, 1e6), addresses=st.integers(1, 20))
def test_attempts_on_all_addresses_fit(remaining: float, addresses: int) -> None:
    """However silent the addresses, each gets its share of the time, and all together no more than there is."""
    left = remaining
    for addresses_left in range(addresses, 0, -1):
        seconds = attempt_seconds(connect_timeout=0, max_wait=10.0, remaining=left, addresses_left=addresses_left)
        assert seconds >= min(ATTEMPT_SECONDS, remaining / addresses) * 0.999
        left -= seconds
    assert left >= -remaining / 1000


@given(max_wait=SECONDS, remaining=SECONDS, addresses_left=st.integers(1, 20))
def test_attempt_takes_no_longer_than_the_user_said(max_wait: float, remaining: float, addresses_left: int) -> None:
    """``connect_timeout`` bounds each attempt; without it, or with 0 as in libpq, the kit's own bound holds."""
    for connect_timeout, patience in ((2, 2), (30, 30), (0, ATTEMPT_SECONDS), (-1, ATTEMPT_SECONDS)):
        seconds = attempt_seconds(
            connect_timeout=connect_timeout, max_wait=max_wait, remaining=remaining, addresses_left=addresses_left
        )
        assert 0 <= seconds <= patience


@pytest.mark.parametrize(("connect_timeout", "seconds"), [(0, ATTEMPT_SECONDS), (3, 3), (60, 60)])
def test_single_attempt_takes_its_time(connect_timeout: int, seconds: float) -> None:
    """With `max_wait=0` nothing is left from the start; the one attempt is made all the same, and not for 0 seconds."""
    assert attempt_seconds(connect_timeout=connect_timeout, max_wait=0, remaining=0.0, addresses_left=3) == seconds


@given(remaining=st.floats(1e-6, 1e6))
def test_idle_connection_gets_little_time_to_answer(remaining: float) -> None:
    """A dead one costs a second at most, and never more than half of what is left: the rest is for its successor."""
    assert 0 < open_seconds(is_fresh=False, remaining=remaining) <= min(OPEN_SECONDS, remaining / 2)


@given(remaining=st.floats(1e-6, 1e6))
def test_fresh_connection_gets_all_the_time(remaining: float) -> None:
    """Nothing better than a connection that was just made is to be had."""
    assert open_seconds(is_fresh=True, remaining=remaining) == remaining


@pytest.mark.parametrize(("is_fresh", "seconds"), [(True, ATTEMPT_SECONDS), (False, OPEN_SECONDS)])
def test_open_after_a_single_attempt_takes_its_time(is_fresh: bool, seconds: float) -> None:
    """Nothing left means `max_wait=0`: the open is then waited for like the attempt."""
    assert open_seconds(is_fresh=is_fresh, remaining=0.0) == seconds


@given(st.integers(0, LONGEST_TIMEOUT))
def test_rounded_timeout_is_a_little_less(milliseconds: int) -> None:
    """Never longer than asked for, never shorter by more than a 64th, and with the grace of the outer time-outs never
    before the deadline."""
    rounded = rounded_timeout(milliseconds)
    assert milliseconds * 63 / 64 <= rounded <= milliseconds < rounded + ORPHAN_GRACE
    assert rounded_timeout(rounded) == rounded
