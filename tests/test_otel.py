"""Metrics and spans, read back from OpenTelemetry's own SDK."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import kill

from serverless_pg_kit import AcquireTimeout, ConnectRejected, Engine, Settings, events
from serverless_pg_kit.events import Event
from serverless_pg_kit.otel import default_pool_name, instrument
from serverless_pg_kit.otel.instruments import COUNTED
from serverless_pg_kit.testing import PostgresServer

POOL = {"db.client.connection.pool.name": "orders"}
SAMPLES = {"str": "text", "int": 7, "float": 0.25, "bool": True, "str | None": "23505", "tuple[int, ...]": (7, 8)}
CONVENTIONS = {
    "db.client.connection.count": "{connection}",
    "db.client.connection.idle.max": "{connection}",
    "db.client.connection.max": "{connection}",
    "db.client.connection.pending_requests": "{request}",
    "db.client.connection.timeouts": "{timeout}",
    "db.client.connection.create_time": "s",
    "db.client.connection.use_time": "s",
    "db.client.connection.wait_time": "s",
}
"""The metrics of a connection pool, by OpenTelemetry's conventions, with their units."""


class Telescope:
    """Providers of metrics and spans that keep what they get in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def watch(self, engine: Engine, pool_name: str | None = "orders") -> None:
        """Record what `engine` does."""
        instrument(engine, pool_name=pool_name, meter_provider=self.meters, tracer_provider=self.tracers)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics by name."""
        data = self._reader.get_metrics_data()
        resources = [] if data is None else data.resource_metrics
        scopes = [scope for resource in resources for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}

    def values(self, name: str) -> dict[frozenset[Any], Any]:
        """Return the number at each set of attributes beyond the pool's name; of a histogram the count."""
        metric = self.metrics().get(name)
        points = [] if metric is None else metric.data.data_points
        assert all(point.attributes.items() >= POOL.items() for point in points)
        return {
            frozenset(point.attributes.items() - POOL.items()): getattr(point, "value", getattr(point, "count", None))
            for point in points
        }

    def total(self, name: str) -> float:
        """Return the sum of a histogram's values."""
        [point] = self.metrics()[name].data.data_points
        return float(point.sum)

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the spans that have ended."""
        return self._exporter.get_finished_spans()


@pytest.fixture
def telescope() -> Iterator[Telescope]:
    """Providers for one test."""
    telescope = Telescope()
    yield telescope
    telescope.meters.shutdown()
    telescope.tracers.shutdown()


def samples() -> list[Event]:
    """Return one event of each kind."""
    return [
        kind(*(SAMPLES[str(kind.__annotations__[name])] for name in kind.__match_args__))
        for kind in Event.__subclasses__()
        if kind.__module__ == events.__name__
    ]


def test_every_event_can_be_recorded(telescope: Telescope, caplog: pytest.LogCaptureFixture) -> None:
    """No event makes the listener fail or the SDK complain; those that have a counter are counted once."""
    engine = Engine()
    telescope.watch(engine)
    with telescope.tracers.get_tracer("app").start_as_current_span("request"):
        for event in samples():
            engine._announce(event)
    counts = {name: sum(telescope.values(name).values()) for name in telescope.metrics() if name.startswith("serv")}
    assert counts == {f"serverless_pg_kit.{kind.counter}": 1 for kind in COUNTED} | {"serverless_pg_kit.killed": 2}
    assert [record for record in caplog.records if record.name != "serverless_pg_kit"] == []
    assert "failed on" not in caplog.text


def test_no_event_is_forgotten() -> None:
    """What has no counter here is measured in another way, or comes with every request."""
    counted_by_stats = {type(event) for event in samples() if event.counter}
    measured = {events.Connected, events.Reused, events.Waited, events.Reaped}
    too_frequent = {events.Committed, events.Leased, events.Counted}
    assert counted_by_stats - COUNTED.keys() == measured | too_frequent


def test_metrics_have_the_names_of_the_conventions(telescope: Telescope) -> None:
    """Dashboards for connection pools find what they look for, in seconds."""
    engine = Engine()
    telescope.watch(engine)
    for event in (*samples(), events.GaveUp("AcquireTimeout", 1.0, 0)):
        engine._announce(event)
    units = {name: metric.unit for name, metric in telescope.metrics().items() if name.startswith("db.")}
    assert units == CONVENTIONS
    [point] = telescope.metrics()["db.client.connection.use_time"].data.data_points
    assert point.explicit_bounds[0] < 0.001 < 10 <= point.explicit_bounds[-1]


def test_requests_are_measured(telescope: Telescope, make_engine: Any) -> None:
    """How often, and for how long, connections are opened, waited for and used."""
    heard: list[Event] = []
    engine = make_engine(on_event=heard.append)
    telescope.watch(engine)
    for _ in range(3):
        with engine.request():
            pass
    waits = [event.seconds for event in heard if isinstance(event, (events.Connected, events.Reused))]
    uses = [event.seconds for event in heard if isinstance(event, events.Released)]
    [connecting] = [event.connecting for event in heard if isinstance(event, events.Connected)]
    assert telescope.values("db.client.connection.wait_time") == {frozenset(): 3}
    assert telescope.values("db.client.connection.use_time") == {frozenset(): 3}
    assert telescope.values("db.client.connection.create_time") == {frozenset(): 1}
    assert telescope.total("db.client.connection.wait_time") == pytest.approx(sum(waits))
    assert telescope.total("db.client.connection.use_time") == pytest.approx(sum(uses))
    assert telescope.total("db.client.connection.create_time") == pytest.approx(connecting)


def test_gauges_show_what_is_now(telescope: Telescope, make_engine: Any) -> None:
    """Connections in use and idle, requests in line, and what the process may have."""
    engine = make_engine(max_size=3)
    telescope.watch(engine)
    idle, used = (frozenset({("db.client.connection.state", state)}) for state in ("idle", "used"))
    assert telescope.values("db.client.connection.count") == {idle: 0, used: 0}
    with engine.request():
        with engine.request(join=False):
            assert telescope.values("db.client.connection.count") == {idle: 0, used: 2}
        assert telescope.values("db.client.connection.count") == {idle: 1, used: 1}
    assert telescope.values("db.client.connection.count") == {idle: 2, used: 0}
    assert telescope.values("db.client.connection.pending_requests") == {frozenset(): 0}
    assert telescope.values("db.client.connection.max") == {frozenset(): 3}
    assert telescope.values("db.client.connection.idle.max") == {frozenset(): 3}


def test_gauges_do_not_keep_an_engine_alive(telescope: Telescope) -> None:
    """An engine that nobody else holds is collected, and leaves the gauges."""
    engine = Engine()
    telescope.watch(engine)
    assert telescope.values("db.client.connection.max") == {frozenset(): 10}
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    assert telescope.values("db.client.connection.max") == {}


def test_engines_share_the_instruments(telescope: Telescope) -> None:
    """Two engines stand side by side under their own names; watching one twice counts nothing twice."""
    one, other = Engine(max_size=2), Engine(max_size=3)
    for _ in range(2):
        telescope.watch(one, "one")
        telescope.watch(other, "other")
    one._announce(events.Thawed(1.0))
    sizes = telescope.metrics()["db.client.connection.max"].data.data_points
    assert {point.attributes["db.client.connection.pool.name"]: point.value for point in sizes} == {
        "one": 2,
        "other": 3,
    }
    [point] = telescope.metrics()["serverless_pg_kit.thaws"].data.data_points
    assert (point.value, point.attributes) == (1, {"db.client.connection.pool.name": "one"})


def test_connecting_is_a_span_of_the_request(telescope: Telescope, make_engine: Any) -> None:
    """What a request waited for its new connection stands in its trace, as long as it took; a reuse is no span."""
    engine = make_engine()
    telescope.watch(engine)
    with telescope.tracers.get_tracer("app").start_as_current_span("request") as parent:
        for _ in range(2):
            with engine.request():
                pass
    span, around = telescope.spans()
    assert (span.name, around.name) == ("serverless_pg_kit.acquire", "request")
    assert span.parent == parent.get_span_context()
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(engine.stats.connect_seconds, abs=1e-6)
    assert dict(span.attributes or {}) == {
        "db.system.name": "postgresql",
        "serverless_pg_kit.attempts": 1,
        **POOL,
    }


def test_refusal_is_a_span_with_an_error(telescope: Telescope, make_engine: Any, server: PostgresServer) -> None:
    """A request that got no connection is marked in its trace, with the class of the error."""
    params = conninfo_to_dict(server.dsn) | {"dbname": "nowhere"}
    engine = make_engine(conninfo=make_conninfo("", **params))
    telescope.watch(engine)
    with pytest.raises(ConnectRejected):
        engine.connect()
    [span] = telescope.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "ConnectRejected"
    reason = frozenset({("error.type", "permanent"), ("db.response.status_code", "3D000")})
    assert telescope.values("serverless_pg_kit.refusals") == {reason: 1}
    assert telescope.values("db.client.connection.timeouts") == {}


def test_waiting_in_vain_is_a_timeout(telescope: Telescope, make_engine: Any) -> None:
    """Requests that get no connection in time count as what the conventions call a timeout."""
    engine = make_engine(max_size=1)
    telescope.watch(engine)
    with engine.request(), pytest.raises(AcquireTimeout), engine.request(join=False, deadline=0.02):
        raise AssertionError("not served")
    assert telescope.values("db.client.connection.timeouts") == {frozenset(): 1}


def test_what_befalls_a_request_is_noted_in_its_span(telescope: Telescope, make_engine: Any, superuser: Any) -> None:
    """Events from level INFO on stand in the span that the request is in."""
    engine = make_engine()
    telescope.watch(engine)
    with engine.request() as conn:
        pid = conn.info.backend_pid
    kill(superuser, pid)
    with telescope.tracers.get_tracer("app").start_as_current_span("request"):
        engine.connect()
        engine.clean()
    span = telescope.spans()[-1]
    [noted] = span.events
    assert noted.name == "serverless_pg_kit.Lost"
    attributes = dict(noted.attributes or {})
    assert (attributes["serverless_pg_kit.pid"], attributes["serverless_pg_kit.seen"]) == (pid, "peek")


def test_no_secret_is_recorded(telescope: Telescope, make_engine: Any, server: PostgresServer) -> None:
    """Neither password nor user, nor what a server said, is in any attribute of a metric or a span."""
    params = conninfo_to_dict(server.dsn) | {"user": "hunter1", "password": "hunter2"}
    engine = make_engine(conninfo=make_conninfo("", **params))
    telescope.watch(engine, None)
    with telescope.tracers.get_tracer("app").start_as_current_span("request"), suppress(psycopg.OperationalError):
        engine.connect()
    recorded = [span.to_json() for span in telescope.spans()] + [str(telescope.metrics())]
    assert len(recorded) == 3
    assert not [text for text in recorded if "hunter" in text]


@pytest.mark.parametrize(
    ("conninfo", "environ", "name"),
    [
        ("postgresql://me:secret@db.example:6543/shop?sslmode=disable", {}, "db.example:6543/shop"),
        ("host=one,two dbname=shop password=secret", {}, "one:5432/shop"),
        ("hostaddr=10.0.0.7", {"PGDATABASE": "shop", "PGPORT": "7"}, "10.0.0.7:7/shop"),
        ("", {"DATABASE_URL": "postgresql://me:secret@h/d"}, "h:5432/d"),
        ("", {}, "localhost:5432/"),
    ],
)
def test_pool_is_named_after_the_database(
    monkeypatch: pytest.MonkeyPatch, conninfo: str, environ: dict[str, str], name: str
) -> None:
    """As the conventions want it for pools without a name; never with user or password."""
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    assert default_pool_name(Settings(conninfo=conninfo)) == name


def test_without_an_sdk_nothing_happens(make_engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The API alone does nothing, and an engine under it works."""
    engine = make_engine()
    instrument(engine)
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)
    assert caplog.records == []


def test_missing_api_is_named() -> None:
    """Who lacks the extra hears how to get it."""
    code = "import sys; sys.modules['opentelemetry'] = None; import serverless_pg_kit.otel"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "serverless-pg-kit[otel]"' in run.stderr.splitlines()[-1]
