"""The listener that records events, in metrics and in spans."""

from __future__ import annotations

import logging
import time

from opentelemetry.trace import SpanKind, StatusCode, Tracer, get_current_span

from serverless_pg_kit import events
from serverless_pg_kit.otel.instruments import COUNTED, NAME, Attributes, Instruments

TIMEOUTS = ("AcquireTimeout", "TooManyConnections")
"""The errors of requests that waited; the others were refused for good."""

WORDS: dict[type[events.Event], str] = {events.Refused: "message", events.MaintenanceFailed: "error"}
"""Fields with what somebody else said. They stay in the log."""


class Recorder:
    """A listener that records each event in `instruments`, and in spans of `tracer`."""

    def __init__(self, instruments: Instruments, tracer: Tracer, pool: Attributes) -> None:
        self._instruments = instruments
        self._tracer = tracer
        self._pool = pool

    def __call__(self, event: events.Event) -> None:
        self._measure(event)
        self._count(event)
        if isinstance(event, (events.Connected, events.GaveUp)):
            self._trace(event)
        elif event.level >= logging.INFO:
            mention(event)

    def _measure(self, event: events.Event) -> None:
        if isinstance(event, (events.Connected, events.Reused)):
            self._instruments.wait_time.record(event.seconds, self._pool)
        if isinstance(event, events.Connected):
            self._instruments.create_time.record(event.connecting, self._pool)
        if isinstance(event, events.Released):
            self._instruments.use_time.record(event.seconds, self._pool)

    def _count(self, event: events.Event) -> None:
        if isinstance(event, events.GaveUp) and event.error in TIMEOUTS:
            self._instruments.timeouts.add(1, self._pool)
        if isinstance(event, events.Reaped):
            self._instruments.killed.add(len(event.pids), self._pool)
        fields = COUNTED.get(type(event))
        if fields is not None:
            values = {name: getattr(event, field) for field, name in fields.items()}
            told = {name: value for name, value in values.items() if value is not None}
            self._instruments.counters[type(event)].add(1, {**self._pool, **told})

    def _trace(self, event: events.Connected | events.GaveUp) -> None:
        """Record, afterwards, an acquisition that was out of the ordinary as a span of the request's."""
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{NAME}.acquire",
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": "postgresql", **self._pool, f"{NAME}.attempts": event.attempts},
            start_time=end - int(event.seconds * 1e9),
        )
        if isinstance(event, events.GaveUp):
            span.set_attribute("error.type", event.error)
            span.set_status(StatusCode.ERROR)
        span.end(end)


def mention(event: events.Event) -> None:
    """Add `event` to the span that the request is in, if it is recorded; without what somebody else said."""
    span = get_current_span()
    if span.is_recording():
        fields = {name: value for name, value in vars(event).items() if name != WORDS.get(type(event))}
        told = {f"{NAME}.{name}": value for name, value in fields.items() if value is not None}
        span.add_event(f"{NAME}.{type(event).__name__}", told)
