from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from typing import Any

import pytest

from serverless_pg_kit.events import Announcer, Closed, Connected, Event, Reaped, Stats


def test_events_are_frozen_dataclasses() -> None:
    """Events can be compared, copied, pickled and taken apart, but not changed."""
    event = Connected(pid=7, seconds=0.5, attempts=2)
    assert event == Connected(7, 0.5, 2) != Connected(8, 0.5, 2)
    assert hash(event) == hash(Connected(7, 0.5, 2))
    assert repr(event) == "Connected(pid=7, seconds=0.5, attempts=2)"
    assert dataclasses.asdict(event) == {"pid": 7, "seconds": 0.5, "attempts": 2}
    assert dataclasses.replace(event, pid=8).pid == 8
    assert pickle.loads(pickle.dumps(event)) == copy.copy(event) == event
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.pid = 8  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del event.pid  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "named"), [((7,), {}), ((7, 0.5, 2, 3), {}), ((7, 0.5, 2), {"pid": 7}), ((7, 0.5), {"tries": 2})]
)
def test_events_take_exactly_their_fields(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    """A forgotten, surplus or misspelt field is an error that names them all."""
    with pytest.raises(TypeError, match="Connected takes pid, seconds, attempts"):
        Connected(*values, **named)


def test_every_counter_is_a_field_of_stats() -> None:
    """No event is counted under a name nobody can read."""
    for kind in Event.__subclasses__():
        assert not kind.counter or kind.counter in Stats._fields
        assert kind.__doc__


def test_listener_that_raises_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """One bad listener harms neither the caller nor the next listener."""
    heard: list[Event] = []

    def bad(event: Event) -> None:
        raise ValueError("mine")

    announce = Announcer([bad, heard.append])
    announce(Closed(7, "why"))
    assert heard == [Closed(7, "why")]
    assert "a listener failed" in caplog.text


def test_stats_count_events() -> None:
    """Counts are of events, and of the sessions ended by them."""
    announce = Announcer([])
    announce(Reaped((1, 2, 3)))
    announce(Closed(7, "why"))
    stats = announce.stats(open=2, in_use=1)
    assert (stats.reapings, stats.killed, stats.closes, stats.open, stats.in_use) == (1, 3, 1, 2, 1)


def test_events_are_logged_at_their_level(caplog: pytest.LogCaptureFixture) -> None:
    """The logger of the kit tells what happened without any listener."""
    with caplog.at_level(logging.INFO, "serverless_pg_kit"):
        Announcer([])(Reaped((7,)))
        Announcer([])(Closed(7, "why"))
    assert [record.getMessage() for record in caplog.records] == ["Reaped(pids=(7,))"]
