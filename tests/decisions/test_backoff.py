from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverless_pg_kit.decisions.backoff import (
    LAST_CHANCE,
    LONGEST_CHANCE,
    LONGEST_PAUSE,
    PACE_MEMORY,
    UNKNOWN_DELAY,
    Backoff,
    first_delay,
    next_delay,
)
from serverless_pg_kit.decisions.classify import Failure, FailureKind

CAPACITY = Failure(FailureKind.CAPACITY, "full")
UNKNOWN = Failure(FailureKind.UNKNOWN, "?")
BACKOFF = Backoff(base=0.05, cap=2.0)


def delay(failure: Failure = CAPACITY, backoff: Backoff = BACKOFF, **given: float) -> float | None:
    """Return the next delay of the second attempt, ten seconds left, all dice showing their highest."""
    values = {"attempts": 1, "remaining": 10.0, "attempt_seconds": 0.01, "dice": 1.0} | given
    return next_delay(
        backoff,
        failure,
        attempts=int(values["attempts"]),
        remaining=values["remaining"],
        attempt_seconds=values["attempt_seconds"],
        dice=values["dice"],
    )


def test_delays_start_small_and_grow_fast_up_to_the_cap() -> None:
    """A lone container waits little, a crowd soon spreads out."""
    assert [delay(attempts=n) for n in range(1, 7)] == pytest.approx([0.05, 0.15, 0.45, 1.35, 2.0, 2.0])


def test_jitter_is_full() -> None:
    """Delays are spread from zero to the ceiling, so that containers refused together do not return together."""
    assert delay(attempts=5, dice=0.0) == 0.0
    assert delay(attempts=5, dice=0.5) == 1.0


@given(
    attempts=st.integers(1, 10_000),
    remaining=st.floats(0, 100),
    attempt_seconds=st.floats(0, 10),
    dice=st.floats(0, 1, exclude_max=True),
)
def test_next_attempt_fits_before_the_deadline(
    attempts: int, remaining: float, attempt_seconds: float, dice: float
) -> None:
    """Whatever the numbers, after the delay there is time left for an attempt as slow as the slowest, within bounds."""
    seconds = delay(attempts=attempts, remaining=remaining, attempt_seconds=attempt_seconds, dice=dice)
    if seconds is None:
        assert remaining <= min(max(attempt_seconds, LAST_CHANCE), LONGEST_CHANCE)
    else:
        assert 0 <= seconds <= remaining - min(max(attempt_seconds, LAST_CHANCE), LONGEST_CHANCE)


def test_long_delay_is_shortened_for_a_last_attempt() -> None:
    """The last attempt is made just before the deadline, not given up because its turn would come after it."""
    assert delay(attempts=9, remaining=1.0) == pytest.approx(1.0 - LAST_CHANCE)


@pytest.mark.parametrize("kind", [FailureKind.CREDENTIALS, FailureKind.PERMANENT])
def test_permanent_failures_are_not_retried(kind: FailureKind) -> None:
    """A wrong password is reported at once."""
    assert delay(Failure(kind, "no")) is None


def test_unknown_failures_are_retried_once_a_second() -> None:
    """What nobody understands may be a failing login: it is not hammered."""
    assert delay(UNKNOWN, dice=0.0) == UNKNOWN_DELAY
    assert delay(UNKNOWN, remaining=UNKNOWN_DELAY) is None


def test_max_retries_counts_retries() -> None:
    """With `max_retries=3` the fourth attempt is the last; with 0 the first is."""
    three = Backoff(0.05, 2.0, max_retries=3)
    assert delay(backoff=three, attempts=3) is not None
    assert delay(backoff=three, attempts=4) is None
    assert delay(backoff=Backoff(0.05, 2.0, max_retries=0), attempts=1) is None


def test_limit_of_a_single_rule_holds() -> None:
    """A rule of the table may allow fewer retries than the settings."""
    named = Failure(FailureKind.NETWORK, "name", max_retries=1)
    assert delay(named, attempts=1) is not None
    assert delay(named, attempts=2) is None


def test_who_stood_in_line_stays_away_for_three_times_as_long() -> None:
    """Give or take half, and not counted what a connect takes without a line."""
    pauses = [first_delay(0.45, 1.0, remaining=10.0, dice=dice) for dice in (0.0, 0.5, 1.0)]
    assert pauses == pytest.approx([0.3, 0.6, 0.9])


@pytest.mark.parametrize(
    ("connect_seconds", "connected_ago", "remaining"),
    [(0.25, 1.0, 10.0), (1.0, PACE_MEMORY, 10.0), (1.0, -1.0, 10.0), (1.0, 1.0, 0.0), (1.0, 1.0, -1.0)],
)
def test_nobody_stays_away_for_nothing(connect_seconds: float, connected_ago: float, remaining: float) -> None:
    """After a quick connect, one of long ago, or without time there is no pause."""
    assert first_delay(connect_seconds, connected_ago, remaining=remaining, dice=1.0) == 0.0


@given(
    connect_seconds=st.floats(0, 100),
    connected_ago=st.floats(-100, 100),
    remaining=st.floats(-1, 100),
    dice=st.floats(0, 1, exclude_max=True),
)
def test_staying_away_is_bounded(connect_seconds: float, connected_ago: float, remaining: float, dice: float) -> None:
    """By seconds, and by a quarter of the time that is left: the attempts get the rest."""
    seconds = first_delay(connect_seconds, connected_ago, remaining=remaining, dice=dice)
    assert 0.0 <= seconds <= min(LONGEST_PAUSE, max(0.0, remaining) / 4)
