"""The instruments: what is measured, and the gauges that read it from engines."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, MeterProvider, Observation, get_meter

from serverless_pg_kit import __version__
from serverless_pg_kit.base import EngineBase
from serverless_pg_kit.events import (
    Cancelled,
    Closed,
    CredentialsRefreshed,
    Down,
    Event,
    Expired,
    GaveUp,
    HeldUnused,
    Lost,
    MaintenanceFailed,
    NotCommitted,
    Paused,
    Refused,
    Replaying,
    Restarted,
    Retrying,
    RolledBack,
    Thawed,
    Yielded,
)

NAME = "serverless_pg_kit"
POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. The SDK's own boundaries are meant for milliseconds."""

COUNTED: dict[type[Event], dict[str, str]] = {
    Refused: {"kind": "error.type", "code": "db.response.status_code"},
    Retrying: {},
    Paused: {},
    GaveUp: {"error": "error.type"},
    Down: {},
    Lost: {"seen": f"{NAME}.seen"},
    Expired: {"reason": f"{NAME}.reason"},
    Thawed: {},
    Restarted: {"reason": f"{NAME}.reason"},
    HeldUnused: {},
    Cancelled: {},
    NotCommitted: {"error": "error.type", "code": "db.response.status_code"},
    RolledBack: {},
    CredentialsRefreshed: {},
    Replaying: {"error": "error.type"},
    Yielded: {},
    Closed: {},
    MaintenanceFailed: {"stage": f"{NAME}.stage"},
}
"""The events that have a counter each, named like the one in `Stats`, and which of their fields are its attributes:
those that take few values."""

Attributes = dict[str, str]
Reading = Callable[[EngineBase, Attributes], Iterator[Observation]]


def _read_states(engine: EngineBase, pool: Attributes) -> Iterator[Observation]:
    stats = engine.stats
    yield Observation(stats.open - stats.in_use, {**pool, STATE: "idle"})
    yield Observation(stats.in_use, {**pool, STATE: "used"})


def _read_waiting(engine: EngineBase, pool: Attributes) -> Iterator[Observation]:
    yield Observation(engine.stats.waiting, pool)


def _read_max_size(engine: EngineBase, pool: Attributes) -> Iterator[Observation]:
    yield Observation(engine.settings.max_size, pool)


GAUGES: tuple[tuple[str, str, Reading, str], ...] = (
    ("db.client.connection.count", "{connection}", _read_states, "Connections that are idle or used now"),
    ("db.client.connection.pending_requests", "{request}", _read_waiting, "Requests that wait in line now"),
    ("db.client.connection.max", "{connection}", _read_max_size, "Connections of the process, at most"),
    ("db.client.connection.idle.max", "{connection}", _read_max_size, "Idle connections of the process, at most"),
)
HISTOGRAMS = (
    ("db.client.connection.create_time", "Seconds that it took to open a connection"),
    ("db.client.connection.wait_time", "Seconds that a request waited for its connection, all in"),
    ("db.client.connection.use_time", "Seconds that a request had its connection"),
)


class Instruments:
    """The instruments of one meter provider: one set for all engines, because a meter has each name once."""

    def __init__(self, provider: MeterProvider | None) -> None:
        self._pools: tuple[tuple[weakref.ref[EngineBase], Attributes], ...] = ()
        meter = get_meter(NAME, __version__, provider)
        for name, unit, reading, text in GAUGES:
            meter.create_observable_up_down_counter(name, [self._callback(reading)], unit, text)
        create_time, wait_time, use_time = (
            meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=BUCKETS)
            for name, text in HISTOGRAMS
        )
        self.create_time: Histogram = create_time
        self.wait_time: Histogram = wait_time
        self.use_time: Histogram = use_time
        self.timeouts: Counter = meter.create_counter(
            "db.client.connection.timeouts", "{timeout}", "Requests that waited for a connection in vain"
        )
        self.killed: Counter = meter.create_counter(f"{NAME}.killed", "{session}", "Idle sessions ended to make room")
        self.counters: dict[type[Event], Counter] = {
            kind: meter.create_counter(f"{NAME}.{kind.counter}", "{event}", f"Events {kind.__name__}")
            for kind in COUNTED
        }

    def observe(self, engine: EngineBase, pool: Attributes) -> bool:
        """Read the gauges of `engine` from now on, for as long as it lives; tell whether that is new."""
        alive = [(known, name) for known, name in self._pools if known() is not None]
        if any(known() is engine for known, _ in alive):
            return False
        self._pools = (*alive, (weakref.ref(engine), pool))  # replaced, not changed: an exporter's thread may read it
        return True

    def _callback(self, reading: Reading) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterator[Observation]:
            for known, pool in self._pools:
                engine = known()
                if engine is not None:
                    yield from reading(engine, pool)

        return read


@functools.cache
def instruments_of(provider: MeterProvider | None) -> Instruments:
    """Return the instruments of `provider`. ``None`` is the global one, which may be set later."""
    return Instruments(provider)
