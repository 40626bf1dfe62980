"""How events reach the counts, the log and the listeners: in the thread of the request, and under no lock."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from serverless_pg_kit.events import Committed, Event, Listener, Reaped, Reused

if TYPE_CHECKING:
    from serverless_pg_kit.stats import Stats

logger: logging.Logger = logging.getLogger("serverless_pg_kit")

SLOW = 0.1
"""Seconds above which a listener is reported, once: its request waits for it."""

KINDS = Event.__subclasses__()
COUNTERS = frozenset(kind.counter for kind in KINDS if kind.counter)
"""The fields of `Stats` that grow by one at a time."""

TOTALS = frozenset(kind.total for kind in KINDS if kind.total)
"""Those that sum up seconds."""


class Announcer:
    """Gives the events of one engine to the counts, the log and the listeners.

    `current` is the variable with the engine's current request: a listener does not see the one that it hears of, so
    what it does through the engine is a request of its own. What happens in that one is counted, but neither logged nor
    told, or it would go round for ever. `fleet` stands in every log record.
    """

    def __init__(self, listeners: Sequence[Listener], current: ContextVar[Any], fleet: str) -> None:
        self._listeners = tuple(listeners)
        self._current = current
        self._fleet = fleet
        self._telling: ContextVar[bool] = ContextVar("serverless_pg_kit.telling", default=False)
        self._slow: set[int] = set()
        self.is_heard: bool = False
        self.start_anew()

    def start_anew(self) -> None:
        """Count from zero, as a forked child has to. Another thread of the parent may have held the old lock."""
        # A signal handler may count while the thread that it interrupted does.
        self._lock = threading.RLock()
        # A step of an iterator is one operation to the interpreter: it needs no lock, which would cost four times as
        # much. Reading takes a step, too.
        self._steps = {name: itertools.count() for name in COUNTERS}
        self.count_reuse: Callable[[], int] = self._steps[Reused.counter].__next__
        self.count_commit: Callable[[], int] = self._steps[Committed.counter].__next__
        self._readings = 0
        self._sums: dict[str, Any] = {"killed": 0, **dict.fromkeys(TOTALS, 0.0)}

    def add_listener(self, listener: Listener) -> None:
        """Give all further events to `listener`, too."""
        self._listeners = (*self._listeners, listener)
        self.is_heard = True

    def __call__(self, event: Event) -> None:
        """Count, log and announce `event`. Raises only what is meant to end more than a listener, such as
        ``KeyboardInterrupt`` and ``SystemExit``."""
        self._count(event)
        is_logged = logger.isEnabledFor(event.level)
        if not (is_logged or self._listeners) or self._telling.get():
            return
        telling, hidden = self._telling.set(True), self._current.set(None)
        try:
            if is_logged:
                log(event, self._fleet)
            for listener in self._listeners:
                self._tell(listener, event)
        finally:
            self._current.reset(hidden)
            self._telling.reset(telling)

    def look_around(self) -> None:
        """Find out whether anybody hears of what comes with every request: a listener, or a log at level DEBUG."""
        self.is_heard = bool(self._listeners) or logger.isEnabledFor(logging.DEBUG)

    def often(self, kind: type[Event], make: Callable[..., Event], *values: Any) -> None:
        """Announce an event that comes with every request, `make(*values)`: it is counted always, but made only if
        somebody hears it, as far as is known since the last `look_around`."""
        if self.is_heard:
            self(make(*values))
        elif kind.counter:
            next(self._steps[kind.counter])

    def count_only(self, kind: type[Event]) -> None:
        """Count an event that was told before."""
        next(self._steps[kind.counter])

    def stats(self, **now: int) -> Stats:
        """Return the counts, with the numbers of connections and requests `now`."""
        from serverless_pg_kit.stats import Stats  # a cold start need not pay for it

        with self._lock:
            counts = {name: next(steps) - self._readings for name, steps in self._steps.items()}
            self._readings += 1
            return Stats(**counts | self._sums | now)

    def _count(self, event: Event) -> None:
        if event.counter:
            next(self._steps[event.counter])
        if event.total:
            self._add(event.total, vars(event)["seconds"])
        if isinstance(event, Reaped):
            self._add("killed", len(event.pids))

    def _add(self, name: str, amount: float) -> None:
        with self._lock:
            self._sums[name] += amount

    def _tell(self, listener: Listener, event: Event) -> None:
        started = time.monotonic()
        try:
            listener(event)
        except Exception:
            complain(logging.ERROR, "%s failed on %s", name_of(listener), event, exc_info=True)
        seconds = time.monotonic() - started
        if seconds > SLOW and id(listener) not in self._slow:
            self._slow.add(id(listener))
            complain(
                logging.WARNING,
                "%s took %.2f s for %s, and the request with it; this is told once",
                name_of(listener),
                seconds,
                event,
            )


def log(event: Event, fleet: str) -> None:
    """Log `event` at its level. The record has the attributes ``pg_event`` (its name), ``pg_fleet`` and one for each of
    its fields: with a prefix, because a record has a `message` and a `name` of its own."""
    fields = {f"pg_{name}": value for name, value in vars(event).items()}
    complain(event.level, "%s", event, extra={"pg_event": type(event).__name__, "pg_fleet": fleet, **fields})


def complain(level: int, text: str, *values: object, **options: Any) -> None:
    """Write into the log. A handler that raises is no worse than a listener that does."""
    with suppress(Exception):
        logger.log(level, text, *values, **options)


def name_of(listener: Listener) -> str:
    """Return what `listener` is called; not its `repr`, which may show what it holds."""
    return f"listener {getattr(listener, '__qualname__', type(listener).__qualname__)}"
