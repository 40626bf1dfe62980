"""What requests wait for, as subsegments of X-Ray."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from serverless_pg_kit import events
from serverless_pg_kit.base import EngineBase

if TYPE_CHECKING:
    from aws_lambda_powertools import Tracer

ACQUIRE = "## postgres acquire"
CLEAN = "## postgres clean"


def trace_engine(engine: EngineBase, tracer: Tracer) -> None:
    """Record from now on, as subsegments, how long requests of `engine` wait for their connections and for their end.

    Does nothing if `tracer` is disabled, as it is outside of Lambda.
    """
    if not tracer.disabled:
        engine.add_listener(TracerListener(tracer))


class TracerListener:
    """A listener that records, afterwards, what took time. An invocation that is not sampled costs a look."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._rollbacks: dict[int, float] = {}

    def __call__(self, event: events.Event) -> None:
        """Record `event`, if it ends something that took time."""
        if isinstance(event, (events.Connected, events.Reused)):
            self._record(ACQUIRE, event.seconds, how=type(event).__name__)
        elif isinstance(event, events.GaveUp):
            self._record(ACQUIRE, event.seconds, how=type(event).__name__, error=event.error)
        elif isinstance(event, events.Committed):
            self._record(CLEAN, event.seconds, how=type(event).__name__)
        elif isinstance(event, events.NotCommitted):
            self._record(CLEAN, 0.0, how=type(event).__name__, error=event.error)
        elif isinstance(event, events.RolledBack):  # comes before the rollback
            self._rollbacks[event.pid] = time.time()
        elif isinstance(event, events.Released) and event.pid in self._rollbacks:
            self._record(CLEAN, time.time() - self._rollbacks.pop(event.pid), how=events.RolledBack.__name__)

    def _record(self, name: str, seconds: float, **annotations: str) -> None:
        provider: Any = self._tracer.provider
        entity = provider.get_trace_entity()
        if entity is None or not entity.sampled:  # X-Ray's own SDK complains where there is no segment yet
            return
        with provider.in_subsegment(name=name) as subsegment:
            subsegment.start_time = time.time() - seconds
            for key, value in annotations.items():
                subsegment.put_annotation(key=f"postgres_{key}", value=value)
