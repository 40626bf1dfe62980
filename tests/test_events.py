from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from serverless_pg_kit import events
from serverless_pg_kit.events import Connected, Event
from serverless_pg_kit.stats import Stats

KINDS = [kind for kind in Event.__subclasses__() if kind.__module__ == events.__name__]


def test_events_are_frozen_dataclasses() -> None:
    """Events can be compared, copied, pickled and taken apart, but not changed."""
    event = Connected(pid=7, seconds=0.5, attempts=2, connecting=0.1)
    assert event == Connected(7, 0.5, 2, 0.1) != Connected(8, 0.5, 2, 0.1)
    assert hash(event) == hash(Connected(7, 0.5, 2, 0.1))
    assert repr(event) == "Connected(pid=7, seconds=0.5, attempts=2, connecting=0.1)"
    assert dataclasses.asdict(event) == {"pid": 7, "seconds": 0.5, "attempts": 2, "connecting": 0.1}
    assert dataclasses.replace(event, pid=8).pid == event.__replace__(pid=8).pid == 8
    assert [field.name for field in dataclasses.fields(Connected)] == list(Connected.__match_args__)
    assert pickle.loads(pickle.dumps(event)) == copy.copy(event) == event
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.pid = 8  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del event.pid  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "named"),
    [((7,), {}), ((7, 0.5, 2, 0.1, 4), {}), ((7, 0.5, 2, 0.1), {"pid": 7}), ((7, 0.5, 2), {"tries": 2})],
)
def test_events_take_exactly_their_fields(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    """A forgotten, surplus or misspelt field is an error that names them all."""
    with pytest.raises(TypeError, match="Connected takes pid, seconds, attempts, connecting"):
        Connected(*values, **named)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_counts_and_sums_are_fields_of_stats(kind: type[Event]) -> None:
    """No event is counted or summed under a name nobody can read, and every one says what it means."""
    assert kind.counter in ("", *Stats._fields)
    assert kind.total in ("", *Stats._fields)
    assert not kind.total or "seconds" in kind.__match_args__
    assert kind.__doc__


def test_no_two_events_share_a_count() -> None:
    """Each count is that of one kind of event."""
    counters = [kind.counter for kind in KINDS if kind.counter]
    assert len(counters) == len(set(counters))
