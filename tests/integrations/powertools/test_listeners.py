"""The listeners: metrics as EMF, records of the Logger, subsegments of the Tracer."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.metrics import EphemeralMetrics
from aws_xray_sdk import global_sdk_config  # type: ignore[import-untyped]
from aws_xray_sdk.core import xray_recorder  # type: ignore[import-untyped]
from aws_xray_sdk.core.lambda_launcher import LambdaContext  # type: ignore[import-untyped]
from powertools_support import Context, event_of

from serverless_pg_kit import AcquireTimeout, Engine, events
from serverless_pg_kit.testing import PostgresServer
from serverless_pg_kit_powertools import (
    LoggerListener,
    MetricsListener,
    PostgresMiddleware,
    postgres_middleware,
    trace_engine,
)
from serverless_pg_kit_powertools.measures import MEASURES
from serverless_pg_kit_powertools.traces import TracerListener

DOCS = Path(__file__).parents[3] / "docs" / "powertools.md"

ONE_OF_EACH: dict[type[events.Event], events.Event] = {
    type(event): event
    for event in (
        events.Connected(7, 0.25, 2, 0.125),
        events.Reused(7, 60.0, 0.25),
        events.Waited(0.5),
        events.GaveUp("TooManyConnections", 2.5, 9),
        events.Refused("capacity", "sorry, too many clients already", "53300", 1, 0.25),
        events.Retrying(0.25, 1),
        events.CredentialsRefreshed(True, 0.25),
        events.Down(1.0),
        events.Lost(7, "peek", 60.0),
        events.Expired(7, "lease", 60.0),
        events.Thawed(60.0),
        events.Restarted("fork", 1),
        events.HeldUnused(7, 3.0),
        events.Released(7, 0.5, True),
        events.Committed(7, 0.25),
        events.NotCommitted(7, "CommitUnknown", None),
        events.RolledBack(7, "the request failed"),
        events.Replaying(1, "SerializationFailure", 0.25),
        events.Cancelled(7),
        events.Counted(80, 60, 17),
        events.Reaped((8, 9, 10), 0.25),
        events.Yielded(7, "no room"),
        events.Closed(7, "the engine was closed", 60.0),
        events.MaintenanceFailed("census", "permission denied"),
    )
}


def blobs(text: str) -> list[dict[str, Any]]:
    """Return the EMF objects among the lines of `text`, each checked against the format's rules."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{") and '"_aws"' in line]
    for blob in found:
        check_emf(blob)
    return found


def check_emf(blob: dict[str, Any]) -> None:
    """Check what CloudWatch asks of a log line before it makes metrics of it."""
    now = time.time() * 1000
    assert abs(blob["_aws"]["Timestamp"] - now) < 3600_000
    for directive in blob["_aws"]["CloudWatchMetrics"]:
        assert re.fullmatch(r"[\w/#:.-]{1,255}", directive["Namespace"])
        assert len(directive["Metrics"]) <= 100
        for names in directive["Dimensions"]:
            assert all(isinstance(blob[name], str) for name in names)
        for metric in directive["Metrics"]:
            assert metric["Unit"] in ("Count", "Milliseconds")
            values = blob[metric["Name"]] if isinstance(blob[metric["Name"]], list) else [blob[metric["Name"]]]
            assert 1 <= len(values) <= 100
            assert all(isinstance(value, (int, float)) and value >= 0 for value in values)


def metrics_of(blob: dict[str, Any]) -> dict[str, tuple[str, list[float]]]:
    """Return unit and values of each metric in `blob`."""
    [directive] = blob["_aws"]["CloudWatchMetrics"]
    return {metric["Name"]: (metric["Unit"], blob[metric["Name"]]) for metric in directive["Metrics"]}


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    """The metrics of the function, which all instances share."""
    made = Metrics()
    yield made
    made.clear_metrics()


@pytest.mark.parametrize("order", ["metrics outside", "postgres outside"])
def test_metrics_arrive_as_emf(
    engine: Engine, metrics: Metrics, context: Any, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    """Two invocations put their metrics on standard output, in the form that CloudWatch reads."""
    engine.add_listener(MetricsListener(metrics))

    def work(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        conn.execute("select 1")

    if order == "metrics outside":
        handler: Any = metrics.log_metrics(postgres_middleware(engine=engine)(work))
    else:
        handler = postgres_middleware(engine=engine)(metrics.log_metrics(work))
    handler({}, context)
    handler({}, context)
    first, second = map(metrics_of, blobs(capsys.readouterr().out))
    assert first["PostgresConnects"] == ("Count", [1.0])
    assert first["PostgresAcquireTime"][0] == "Milliseconds"
    assert 0 < first["PostgresConnectTime"][1][0] <= first["PostgresAcquireTime"][1][0] < 60_000
    assert second["PostgresReuses"] == ("Count", [1.0])
    if order == "metrics outside":
        assert first["PostgresCommits"] == second["PostgresCommits"] == ("Count", [1.0])
        assert 0 < second["PostgresCommitTime"][1][0] < 60_000


def test_metrics_of_a_failure(metrics: Metrics, context: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that refuses shows in the metrics of the very invocation that failed."""
    engine = Engine(conninfo="host=127.0.0.1 port=1 dbname=app", max_wait=0.2, on_event=MetricsListener(metrics))

    @metrics.log_metrics
    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: Any) -> None:
        """Is not reached."""

    with pytest.raises(AcquireTimeout):
        handler({}, context)
    [blob] = blobs(capsys.readouterr().out)
    found = metrics_of(blob)
    assert found["PostgresFailures"] == ("Count", [1.0])
    assert len(found["PostgresRefusals"][1]) >= 1
    assert found["PostgresFailureTime"][0] == "Milliseconds"


def test_every_event_makes_valid_emf(capsys: pytest.CaptureFixture[str]) -> None:
    """Each event with metrics writes them, with values in the unit that they name."""
    assert set(ONE_OF_EACH) == set(MEASURES)
    metrics = EphemeralMetrics()
    listener = MetricsListener(metrics, prefix="Orders")
    for event in ONE_OF_EACH.values():
        listener(event)
    listener(events.PoolerDetected(7, "the name of the host"))
    metrics.flush_metrics()
    [blob] = blobs(capsys.readouterr().out)
    found = metrics_of(blob)
    assert set(found) == {f"Orders{measure.name}" for measures in MEASURES.values() for measure in measures}
    assert found["OrdersAcquireTime"] == ("Milliseconds", [250.0, 250.0])
    assert found["OrdersKilled"] == ("Count", [3.0])
    assert found["OrdersRoom"] == ("Count", [17.0])
    assert found["OrdersFrozenTime"] == ("Milliseconds", [60_000.0])


def test_metrics_are_documented() -> None:
    """The page lists each metric with its unit and its events, and no other."""
    row = re.compile(r"^\| `Postgres(\w+)` \| (\w+) \| ([^|]+) \|", re.MULTILINE)
    listed = {name: (unit, set(re.findall(r"`(\w+)`", kinds))) for name, unit, kinds in row.findall(DOCS.read_text())}
    actual: dict[str, tuple[str, set[str]]] = {}
    for kind, measures in MEASURES.items():
        for measure in measures:
            actual.setdefault(measure.name, (measure.unit.value, set()))[1].add(kind.__name__)
    assert listed == actual


def test_logger(server: PostgresServer, context: Any) -> None:
    """Events become the function's own JSON records, with a key for each field and the id of the request."""
    stream = io.StringIO()
    logger = Logger(service="listener", level="DEBUG", stream=stream)
    engine = Engine(conninfo=server.dsn, on_event=LoggerListener(logger, level=logging.DEBUG))

    @logger.inject_lambda_context
    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> None:
        conn.execute("select 1")

    handler({}, context)
    engine.close()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    connected = next(record for record in records if record["pg_event"] == "Connected")
    assert (connected["level"], connected["service"]) == ("DEBUG", "listener")
    assert connected["function_request_id"] == Context.aws_request_id
    assert isinstance(connected["pg_pid"], int)
    assert connected["pg_seconds"] > 0
    assert connected["message"].startswith("Connected(pid=")


def test_logger_level() -> None:
    """What comes with every request is left out, unless it is asked for."""
    stream = io.StringIO()
    listener = LoggerListener(Logger(service="levels", level="DEBUG", stream=stream))
    for event in ONE_OF_EACH.values():
        listener(event)
    told = {json.loads(line)["pg_event"] for line in stream.getvalue().splitlines()}
    assert told == {kind.__name__ for kind in ONE_OF_EACH if kind.level >= logging.INFO}


def reset(tracers: Any) -> None:
    """Let the next tracer read the environment: all of them share what the first has read."""
    tracers._reset_config()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket where the SDK of X-Ray sends what it recorded, in the environment of a sampled invocation."""
    monkeypatch.setenv("LAMBDA_TASK_ROOT", "/var/task")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1")
    global_sdk_config.set_sdk_enabled(True)
    reset(Tracer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(30)
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        xray_recorder.configure(context=LambdaContext(), daemon_address=address, sampling=False)
        yield listening
    global_sdk_config.set_sdk_enabled(False)
    reset(Tracer)


def subsegments(daemon: socket.socket, count: int) -> list[dict[str, Any]]:
    """Return the next `count` subsegments that were sent."""
    return [json.loads(daemon.recv(65536).partition(b"\n")[2]) for _ in range(count)]


def test_subsegments(engine: Engine, daemon: socket.socket, context: Any) -> None:
    """Acquisition and end are inside the subsegment of the function, as long as they took."""
    tracer = Tracer(auto_patch=False)
    trace_engine(engine, tracer)

    @tracer.capture_lambda_handler
    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: psycopg.Connection[Any]) -> Any:
        conn.execute("select 1")
        return {"statusCode": event}

    handler(200, context)
    acquire, clean, whole = subsegments(daemon, 3)
    assert [part["name"] for part in (acquire, clean, whole)] == [
        "## postgres acquire",
        "## postgres clean",
        "## handler",
    ]
    assert acquire["annotations"] == {"postgres_how": "Connected"}
    assert clean["annotations"] == {"postgres_how": "Committed"}
    assert {acquire["parent_id"], clean["parent_id"]} == {whole["id"]}
    assert whole["start_time"] <= acquire["start_time"] < acquire["end_time"] <= clean["end_time"] <= whole["end_time"]

    handler(500, context)
    acquire, clean, whole = subsegments(daemon, 3)
    assert acquire["annotations"] == {"postgres_how": "Reused"}
    assert clean["annotations"] == {"postgres_how": "RolledBack"}
    assert acquire["end_time"] <= clean["start_time"] < clean["end_time"]


@pytest.mark.parametrize(
    "event", [events.Connected(7, 0.25, 1, 0.2), events.GaveUp("AcquireTimeout", 0.25, 3), events.Committed(7, 0.25)]
)
def test_subsegment_is_as_long_as_it_took(daemon: socket.socket, event: events.Event) -> None:
    """What is recorded afterwards begins when it began."""
    tracer = Tracer(auto_patch=False)
    with tracer.provider.in_subsegment("## handler"):
        TracerListener(tracer)(event)
        [part] = subsegments(daemon, 1)
    assert 0.25 <= part["end_time"] - part["start_time"] < 0.25 + 5


def test_subsegment_of_a_failure(daemon: socket.socket, context: Any) -> None:
    """A request that got no connection shows how long it waited, and which error it heard."""
    tracer = Tracer(auto_patch=False)
    engine = Engine(conninfo="host=127.0.0.1 port=1 dbname=app", max_wait=0.2)
    trace_engine(engine, tracer)

    @tracer.capture_lambda_handler(capture_error=False)
    @postgres_middleware(engine=engine)
    def handler(event: Any, context: Any, conn: Any) -> None:
        """Is not reached."""

    with pytest.raises(AcquireTimeout):
        handler({}, context)
    acquire, whole = subsegments(daemon, 2)
    assert acquire["annotations"] == {"postgres_how": "GaveUp", "postgres_error": "AcquireTimeout"}
    assert whole["start_time"] <= acquire["start_time"]


@pytest.mark.parametrize("header", [None, "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0"])
def test_unsampled_is_silent(
    engine: Engine,
    daemon: socket.socket,
    header: str | None,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """During initialisation and in an invocation that is not sampled nothing is recorded, and nobody complains."""
    monkeypatch.delenv("_X_AMZN_TRACE_ID")
    if header:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    trace_engine(engine, Tracer(auto_patch=False))
    with engine.request() as conn:
        conn.execute("select 1")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""
    daemon.setblocking(False)
    with pytest.raises(BlockingIOError):
        daemon.recv(1)


def test_no_daemon_is_silent(
    engine: Engine, daemon: socket.socket, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where no daemon of X-Ray listens, the request does not notice."""
    daemon.close()
    tracer = Tracer(auto_patch=False)
    trace_engine(engine, tracer)
    with tracer.provider.in_subsegment("## handler"):
        for _ in range(3):
            with engine.request() as conn:
                conn.execute("select 1")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr().err == ""


def test_disabled_tracer_costs_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a disabled tracer there is no listener, so that events are not even made."""
    made: list[Any] = []
    monkeypatch.setattr(engine, "add_listener", made.append)
    trace_engine(engine, Tracer(disabled=True, auto_patch=False))
    assert made == []
    reset(Tracer)


def test_all_together(
    engine: Engine, metrics: Metrics, context: Any, capsys: pytest.CaptureFixture[str], daemon: socket.socket
) -> None:
    """The three listeners beside each other, around a resolver, each do their own."""
    stream = io.StringIO()
    tracer = Tracer(auto_patch=False)
    engine.add_listener(MetricsListener(metrics))
    engine.add_listener(LoggerListener(Logger(service="together", stream=stream, level="DEBUG"), level=logging.DEBUG))
    trace_engine(engine, tracer)
    app = APIGatewayRestResolver()
    app.use(middlewares=[PostgresMiddleware(engine)])
    app.get("/orders/7")(lambda: {"id": engine.connection.info.backend_pid})
    handler = tracer.capture_lambda_handler(metrics.log_metrics(app.resolve))
    assert handler(event_of("api_gateway_v1"), context)["statusCode"] == 200
    [blob] = blobs(capsys.readouterr().out)
    assert "PostgresCommits" in metrics_of(blob)
    assert '"pg_event":"Committed"' in stream.getvalue()
    assert [part["name"] for part in subsegments(daemon, 2)] == ["## postgres acquire", "## postgres clean"]


def test_listener_of_traces_forgets(engine: Engine, daemon: socket.socket) -> None:
    """Nothing is kept of requests that have ended."""
    listener = TracerListener(Tracer(auto_patch=False))
    engine.add_listener(listener)
    for _ in range(3):
        with engine.scope() as scope:
            scope.connection.execute("select 1")
            scope.fail()
    assert sys.getsizeof(listener._rollbacks) <= sys.getsizeof({1: 1})
    assert listener._rollbacks == {}
