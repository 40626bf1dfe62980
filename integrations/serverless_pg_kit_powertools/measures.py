"""Events as metrics: names and units fit for a dashboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from aws_lambda_powertools.metrics import MetricUnit

from serverless_pg_kit import events

if TYPE_CHECKING:
    from aws_lambda_powertools.metrics import EphemeralMetrics, Metrics


class Measure(NamedTuple):
    """A metric: its name (after the prefix), its unit, and how its value is read from an event."""

    name: str
    unit: MetricUnit
    read: Callable[[Any], float]


def one(name: str) -> Measure:
    """Return the metric that counts an event."""
    return Measure(name, MetricUnit.Count, lambda event: 1)


def number(name: str, field: str) -> Measure:
    """Return the metric that shows a number of things."""
    return Measure(name, MetricUnit.Count, lambda event: getattr(event, field))


def time(name: str, field: str = "seconds") -> Measure:
    """Return the metric that shows a duration. CloudWatch shows functions' own in milliseconds."""
    return Measure(name, MetricUnit.Milliseconds, lambda event: getattr(event, field) * 1000)


MEASURES: dict[type[events.Event], tuple[Measure, ...]] = {
    events.Connected: (one("Connects"), time("AcquireTime"), time("ConnectTime", "connecting")),
    events.Reused: (one("Reuses"), time("AcquireTime")),
    events.Waited: (one("Waits"), time("WaitTime")),
    events.GaveUp: (one("Failures"), time("FailureTime")),
    events.Refused: (one("Refusals"),),
    events.Retrying: (one("Retries"),),
    events.CredentialsRefreshed: (one("CredentialRefreshes"), time("RefreshTime")),
    events.Down: (one("Downs"),),
    events.Lost: (one("Losses"),),
    events.Expired: (one("Expirations"),),
    events.Thawed: (one("Thaws"), time("FrozenTime")),
    events.Restarted: (one("Restarts"),),
    events.HeldUnused: (one("Holds"),),
    events.Released: (time("UseTime"),),
    events.Committed: (one("Commits"), time("CommitTime")),
    events.NotCommitted: (one("CommitFailures"),),
    events.RolledBack: (one("Rollbacks"),),
    events.Replaying: (one("Replays"),),
    events.Cancelled: (one("Cancels"),),
    events.Counted: (
        number("ServerConnections", "used"),
        number("FleetConnections", "fleet_used"),
        number("Room", "room"),
    ),
    events.Reaped: (
        one("Reapings"),
        Measure("Killed", MetricUnit.Count, lambda event: len(event.pids)),
        time("ReapTime"),
    ),
    events.Yielded: (one("Yields"),),
    events.Closed: (one("Closes"),),
    events.MaintenanceFailed: (one("MaintenanceFailures"),),
}
"""Which metrics come of which event. An event without an entry is no metric."""


class MetricsListener:
    """A listener (`on_event`, or `Engine.add_listener`) that adds what happens to `metrics`, which write it as EMF.

    The names begin with `prefix`; two engines of one function need two. It writes nothing by itself: that is done by
    ``metrics.log_metrics``, best as the outermost decorator, or by ``metrics.flush_metrics()``.
    """

    def __init__(self, metrics: Metrics | EphemeralMetrics, *, prefix: str = "Postgres") -> None:
        self._metrics = metrics
        self._prefix = prefix

    def __call__(self, event: events.Event) -> None:
        """Add the metrics of `event`."""
        for measure in MEASURES.get(type(event), ()):
            self._metrics.add_metric(self._prefix + measure.name, measure.unit, measure.read(event))
