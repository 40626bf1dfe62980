"""The clock on which pauses take no time."""

from __future__ import annotations

import time
from typing import Any

import pytest

from serverless_pg_kit import AcquireTimeout
from serverless_pg_kit.events import Down, Event, Expired, Thawed
from serverless_pg_kit.testing import InstantClock


def test_pauses_take_no_time(engines: Any) -> None:
    """An engine that tries again for a minute is done at once, and the clock tells how long it would have been."""
    clock = InstantClock(dice=lambda: 0.5)
    engine = engines(conninfo="host=127.0.0.1 port=1", max_wait=60, backoff_base=0.1, backoff_cap=2.0)
    clock.install(engine)
    started, begun = time.monotonic(), clock.monotonic()
    with pytest.raises(AcquireTimeout) as caught:
        engine.connect()
    assert time.monotonic() - started < 10
    assert clock.monotonic() - begun >= sum(clock.slept) > 50
    assert clock.slept[:4] == pytest.approx([0.05, 0.15, 0.45, 1.0])
    assert caught.value.attempts == len(clock.slept) + 1


def test_time_that_passes_is_seen_by_the_engine(make_engine: Any) -> None:
    """Connections grow old, and a server that was down is asked again."""
    heard: list[Event] = []
    clock = InstantClock()
    engine = make_engine(max_lifetime=60, on_event=heard.append)
    clock.install(engine)
    for _ in range(2):
        with engine.request():
            pass
        clock.advance(61.0)
    assert [event.reason for event in heard if isinstance(event, Expired)] == ["max_lifetime"]
    assert not [event for event in heard if isinstance(event, (Thawed, Down))]


def test_freeze_is_seen_by_the_engine(make_engine: Any) -> None:
    """The time of day went on, the process's own clock did not."""
    heard: list[Event] = []
    clock = InstantClock()
    engine = make_engine(on_event=heard.append)
    clock.install(engine)
    with engine.request():
        pass
    clock.freeze(120.0)
    with engine.request():
        pass
    [thawed] = [event for event in heard if isinstance(event, Thawed)]
    assert thawed.seconds == pytest.approx(120.0, abs=1.0)
    assert engine.stats.reuses == 1


def test_it_goes_on_by_itself() -> None:
    """Both its times run like the real ones, so that waiting for what never comes ends."""
    clock = InstantClock()
    clock.advance(1000.0)
    clock.freeze(500.0)
    assert clock.monotonic() - time.monotonic() == pytest.approx(1000.0, abs=1.0)
    assert clock.wall() - time.time() == pytest.approx(1500.0, abs=1.0)
    before = clock.monotonic(), clock.wall()
    time.sleep(0.002)
    assert clock.monotonic() > before[0]
    assert clock.wall() > before[1]


def test_time_does_not_go_back() -> None:
    """A negative step is a mistake in the test."""
    clock = InstantClock()
    for step in (clock.advance, clock.freeze):
        with pytest.raises(ValueError, match="does not go back by"):
            step(-1.0)
