"""How events reach the counts, the log and the listeners, without an engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest

from serverless_pg_kit import announcer, events
from serverless_pg_kit.announcer import Announcer
from serverless_pg_kit.events import Closed, Committed, Connected, Event, Listener, Reaped, Retrying, Waited

CLOSED = Closed(7, "why", 1.5)
KINDS = [kind for kind in Event.__subclasses__() if kind.__module__ == events.__name__]
STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime"}
"""The names that a log record needs for itself."""


def announcer_for(*listeners: Listener, current: ContextVar[Any] | None = None) -> Announcer:
    """Return an announcer for `listeners`."""
    return Announcer(listeners, current or ContextVar("current", default=None), "orders")


def raise_(error: BaseException) -> Any:
    """Raise `error`, where only an expression can stand."""
    raise error


def test_listener_that_raises_is_logged_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """One bad listener harms neither the caller nor the next listener; the log names it and shows its error."""
    heard: list[Event] = []

    def bad(event: Event) -> None:
        raise ValueError("mine")

    announcer_for(bad, heard.append)(CLOSED)
    assert heard == [CLOSED]
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "bad failed on Closed(" in record.getMessage()
    assert "ValueError: mine" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_more_than_a_listener_passes(error: type[BaseException]) -> None:
    """Ctrl-C in a listener reaches the program, and leaves the announcer as it was."""
    heard: list[Event] = []
    moods: Iterator[BaseException | None] = iter([error(), None])

    def moody(event: Event) -> None:
        mood = next(moods)
        if mood is not None:
            raise mood

    announce = announcer_for(moody, heard.append)
    with pytest.raises(error):
        announce(CLOSED)
    announce(CLOSED)
    assert heard == [CLOSED]
    assert announce.stats().closes == 2


def test_log_handler_that_raises_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken log stops neither the request nor the listeners, not even when it is to say that one of them failed."""
    heard: list[Event] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: raise_(OSError("disk full")))
    monkeypatch.setattr(announcer.logger, "handlers", [handler])
    announcer_for(lambda _: raise_(ValueError()), heard.append)(Reaped((7,), 0.1))
    assert heard == [Reaped((7,), 0.1)]


def test_slow_listener_is_reported_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log names a listener that holds requests up, with the time it took, and does not repeat itself."""
    now = [0.0]
    monkeypatch.setattr(announcer, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def dawdle(event: Event) -> None:
        now[0] += 0.3

    def hurry(event: Event) -> None:
        now[0] += announcer.SLOW / 2

    announce = announcer_for(dawdle, hurry)
    announce(CLOSED)
    announce(CLOSED)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "dawdle took 0.30 s for Closed(" in record.getMessage()


class Audit:
    """A listener that holds a secret and fails."""

    def __init__(self) -> None:
        self.password = "hunter2"

    def __repr__(self) -> str:
        return f"Audit({self.password})"

    def __call__(self, event: Event) -> None:
        raise ValueError("no")


def test_log_shows_nothing_that_a_listener_holds(caplog: pytest.LogCaptureFixture) -> None:
    """A listener is named by its class or function: its repr is its own affair."""
    announcer_for(Audit())(CLOSED)
    assert "Audit" in caplog.text
    assert "hunter2" not in caplog.text


def test_listener_does_not_see_the_request_it_hears_of() -> None:
    """Inside a listener no request is current; outside it is the same as before."""
    current: ContextVar[Any] = ContextVar("current", default=None)
    seen: list[Any] = []
    announce = announcer_for(lambda _: seen.append(current.get()), current=current)
    current.set("a request")
    announce(CLOSED)
    assert seen == [None]
    assert current.get() == "a request"


def test_what_a_listener_causes_is_counted_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """A listener whose own work makes events is not called for them, or it would go on for ever."""
    heard: list[Event] = []

    def echo(event: Event) -> None:
        heard.append(event)
        announce(CLOSED)

    announce = announcer_for(echo)
    with caplog.at_level(logging.DEBUG, "serverless_pg_kit"):
        announce(CLOSED)
    assert heard == [CLOSED]
    assert announce.stats().closes == 2
    assert len(caplog.records) == 1


def test_listeners_of_other_threads_are_not_held_up() -> None:
    """While a listener blocks, others hear and count their own events."""
    blocked, go_on = threading.Event(), threading.Event()

    def block(event: Event) -> None:
        if event == Retrying(1.0, 1):
            blocked.set()
            assert go_on.wait(30)

    announce = announcer_for(block)
    thread = threading.Thread(target=announce, args=[Retrying(1.0, 1)])
    thread.start()
    assert blocked.wait(30)
    announce(CLOSED)
    assert announce.stats().closes == 1
    go_on.set()
    thread.join()


def test_added_listener_hears_what_follows() -> None:
    """A listener can come later than the engine, after those that are there."""
    order: list[str] = []
    announce = announcer_for(lambda _: order.append("first"))
    announce(CLOSED)
    announce.add_listener(lambda _: order.append("second"))
    announce(CLOSED)
    assert order == ["first", "first", "second"]


def test_stats_count_and_sum() -> None:
    """Counts are of events and of the sessions ended by them, sums of their seconds; reading changes nothing."""
    announce = announcer_for()
    announce(Reaped((1, 2, 3), 0.1))
    announce(CLOSED)
    announce(Waited(0.25))
    announce(Waited(0.5))
    announce(Connected(7, 2.0, 3, 0.5))
    for _ in range(2):
        stats = announce.stats(open=2, in_use=1, waiting=4)
        assert (stats.open, stats.in_use, stats.waiting) == (2, 1, 4)
        assert (stats.reapings, stats.killed, stats.closes) == (1, 3, 1)
        assert (stats.waits, stats.wait_seconds, stats.connects, stats.connect_seconds) == (2, 0.75, 1, 2.0)
        assert sum(stats) == 2 + 1 + 4 + 1 + 3 + 1 + 2 + 0.75 + 1 + 2.0


@pytest.mark.parametrize("is_heard", [True, False])
def test_counts_are_exact_under_threads(is_heard: bool) -> None:
    """No event is lost or counted twice, whoever counts or reads at the same time."""
    announce = announcer_for(*([lambda _: None] if is_heard else []))

    def work() -> None:
        for _ in range(2000):
            announce.often(Committed, Committed, 7, 0.5)
            announce(Waited(1.0))
            announce.stats()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = announce.stats()
    assert (stats.commits, stats.waits, stats.wait_seconds) == (8000, 8000, 8000.0)


@pytest.mark.parametrize(("level", "made"), [(logging.INFO, 0), (logging.DEBUG, 1)])
def test_frequent_events_are_made_only_if_heard(caplog: pytest.LogCaptureFixture, level: int, made: int) -> None:
    """What comes with every request costs no more than its count, unless the log wants it."""
    makings: list[int] = []

    def make(pid: int) -> Event:
        makings.append(pid)
        return Committed(pid, 0.5)

    announce = announcer_for()
    with caplog.at_level(level, "serverless_pg_kit"):
        announce.look_around()
        announce.often(Committed, make, 7)
    assert makings == [7] * made
    assert len(caplog.records) == made
    assert announce.stats().commits == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_is_logged_with_its_fields(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    """The log has each event at its level, in words and as attributes that take no name of the record's own."""
    event = kind(*range(len(kind.__match_args__)))
    with caplog.at_level(logging.DEBUG, "serverless_pg_kit"):
        if kind is Reaped:
            event = Reaped((1, 2), 0.5)
        announcer_for()(event)
    [record] = caplog.records
    added = {name: value for name, value in vars(record).items() if name not in STANDARD}
    assert (record.levelno, record.getMessage()) == (kind.level, repr(event))
    assert added == {
        "pg_event": kind.__name__,
        "pg_fleet": "orders",
        **{f"pg_{name}": value for name, value in vars(event).items()},
    }


def test_events_below_the_level_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The level of the kit's logger decides what it shows."""
    with caplog.at_level(logging.INFO, "serverless_pg_kit"):
        announcer_for()(Reaped((7,), 0.5))
        announcer_for()(CLOSED)
    assert [record.getMessage() for record in caplog.records] == ["Reaped(pids=(7,), seconds=0.5)"]


def test_signal_handler_may_count_while_its_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that closes the engine runs in the middle of whatever it interrupts, counting included."""
    announce = announcer_for()
    sums = announce._sums

    class Interrupted(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            monkeypatch.setattr(announce, "_sums", sums)
            announce(Waited(1.0))
            return super().__getitem__(name)

    monkeypatch.setattr(announce, "_sums", Interrupted(sums))
    thread = threading.Thread(target=announce, args=[Waited(1.0)], daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert announce.stats().waits == 2
