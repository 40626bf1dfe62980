"""Behind a real PgBouncer, in each of its modes, nothing reaches the session, which may be another client's next."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from blocking import working
from poolers import PgBouncer
from proxy import Proxy
from support import entries, eventually, is_working, kill

from serverless_pg_kit import AcquireTimeout, ConnectRejected, Engine, TooManyConnections, acquire_base
from serverless_pg_kit.decisions.pooler import could_be_pid
from serverless_pg_kit.events import Down, Event, Leased, PoolerDetected
from serverless_pg_kit.testing import PostgresServer

MODES = ("transaction", "session", "statement")
"""PgBouncer's. In the last one there are no transactions, so requests have to be in autocommit mode."""


@pytest.fixture(params=["pid", "asked"])
def detection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which ``auto`` notices a pooler: its pid cannot be a server's, or the server is asked for its.

    PgBouncer draws its pids at random, nearly always so that the first way suffices.
    """
    if request.param == "asked":
        monkeypatch.setattr(acquire_base, "could_be_pid", lambda pid: True)
    return str(request.param)


@pytest.fixture
def pooler(server: PostgresServer) -> Iterator[str]:
    """The connection string of a PgBouncer in transaction mode with one server connection."""
    with PgBouncer(server, pool_mode="transaction", default_pool_size=1) as running:
        yield running.dsn


def talk(conn: psycopg.Connection[Any]) -> None:
    """Ask the server something while a connection is configured."""
    conn.execute("select 1")
    conn.commit()


@pytest.mark.parametrize("configure", [None, talk])
def test_nothing_session_wide_is_sent_through_a_pooler(
    engines: Any, pooler: str, configure: Any, detection: str
) -> None:
    """The guard, the time-outs and the reset stay away from a server connection that others use too; so do prepared
    statements."""
    events: list[Event] = []
    engine = engines(conninfo=pooler, on_event=events.append, configure=configure)
    for _ in range(8):  # more often than psycopg waits before it prepares a statement
        with engine.request(deadline=30) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert len([event for event in events if isinstance(event, PoolerDetected)]) == 1
    with psycopg.connect(pooler, prepare_threshold=None) as other:
        assert traces(other) == ("0", "0", "0", 0, 0)


def traces(conn: psycopg.Connection[Any]) -> Any:
    """Return what an engine could have left in the session of `conn`: time-outs, lease, locks, prepared statements."""
    query = """select current_setting('statement_timeout'), current_setting('client_connection_check_interval'),
               current_setting('idle_session_timeout'),
               (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
               (select count(*) from pg_prepared_statements)"""
    return conn.execute(query).fetchone()


@pytest.mark.parametrize(
    ("mode", "setting"),
    [
        *((mode, setting) for mode in MODES for setting in ("auto", "pgbouncer")),
        *(("transaction", setting) for setting in ("none", "rds-proxy", "supavisor", "neon")),
    ],
)
def test_each_setting_works_in_each_mode(
    engines: Any, server: PostgresServer, superuser: Any, mode: str, setting: str
) -> None:
    """No connect is refused, nothing fails, and the server's own side shows nothing of the engine between requests."""
    is_transactional = mode != "statement"
    events: list[Event] = []
    options: dict[str, str | int] = {
        "pool_mode": mode,
        "default_pool_size": 1,
        "server_reset_query": "select 1",
    }  # so that it hides nothing
    with PgBouncer(server, **options) as pooler:
        engine = engines(
            conninfo=pooler.dsn, pooler=setting, autocommit=not is_transactional, lease=0.2, on_event=events.append
        )
        for deadline in (None, 30.0) * 4:
            with engine.request(deadline=deadline) as conn:
                assert conn.execute("select %s::int", [7]).fetchone() == (7,)
        engine.connect().execute("select 1")
        report = engine.clean()
        assert (report.decision, report.census, report.killed) == ("kept", None, ())
        assert "pooler" in report.reason
        assert len([event for event in events if isinstance(event, PoolerDetected)]) == 1
        stats = engine.stats
        assert (stats.connects, stats.refusals, stats.losses, stats.censuses, stats.maintenance_failures) == (
            1,
        ) + 4 * (0,)
        engine.close()
        with psycopg.connect(pooler.dsn, prepare_threshold=None, autocommit=True) as other:
            assert traces(other) == ("0", "0", "0", 0, 0)
    assert superuser.execute("select count(*) from pg_locks where locktype = 'advisory'").fetchone() == (0,)


@pytest.mark.parametrize("setting", ["auto", "pgbouncer"])
def test_transactions_through_statement_mode_are_refused_at_once(
    engines: Any, server: PostgresServer, setting: str
) -> None:
    """Waiting does not cure it; the error says what does. Also that of a block inside an autocommit request."""
    with PgBouncer(server, pool_mode="statement", default_pool_size=1) as pooler:
        engine = engines(conninfo=pooler.dsn, pooler=setting)
        for _ in range(2):
            with pytest.raises(ConnectRejected, match="autocommit=True") as caught:
                engine.connect()
            assert caught.value.code == "08P01"
            assert "statement pooling mode" in caught.value.reason
        assert (engine.stats.connects, engine.stats.losses, engine.stats.retries) == (0, 2, 0)
        patient = engines(conninfo=pooler.dsn, pooler=setting, autocommit=True)
        with (
            pytest.raises(psycopg.OperationalError, match="statement pooling mode"),
            patient.request() as conn,
            conn.transaction(),
        ):
            conn.execute("select 1")
        with patient.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)


def test_state_of_a_request_stays_in_session_mode(engines: Any, server: PostgresServer) -> None:
    """As documented: there the session is this client's as long as its connection lives, and the engine resets
    nothing in it; but other clients find nothing of it."""
    with PgBouncer(server, pool_mode="session", default_pool_size=1) as pooler:
        engine = engines(conninfo=pooler.dsn)
        with engine.request() as conn:
            conn.execute("set work_mem = '7MB'")
        with engine.request() as conn:
            assert conn.execute("show work_mem").fetchone() == ("7MB",)
        engine.close()
        with psycopg.connect(pooler.dsn, prepare_threshold=None) as other:
            assert other.execute("show work_mem").fetchone() != ("7MB",)


def test_startup_parameter_that_a_pooler_refuses_is_told(engines: Any, pooler: str) -> None:
    """The engine sends none of its own; for one of the user's the error says what to do."""
    with pytest.raises(ConnectRejected, match="ignore_startup_parameters") as caught:
        engines(conninfo=f"{pooler} options='-c work_mem=5MB'").connect()
    assert "unsupported startup parameter" in caught.value.reason


def test_unknown_database_is_told_at_once(engines: Any, pooler: str) -> None:
    """Whether PgBouncer or the server finds that out."""
    with pytest.raises(ConnectRejected):
        engines(conninfo=pooler.replace("dbname=app", "dbname=nope")).connect()


def test_nobody_is_counted_or_ended_through_a_pooler(engines: Any, pooler: str, detection: str) -> None:
    """What could be counted is the pooler's connections, not the clients'."""
    engine = engines(conninfo=pooler, conn_utilization=0.0, strategy="ranked")
    engine.connect()
    report = engine.clean()
    assert (report.decision, report.census, report.killed) == ("kept", None, ())
    assert "pooler" in report.reason
    with pytest.raises(RuntimeError, match="pooler"):
        engine.census()


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_no_lease_is_set_through_a_pooler(
    engines: Any, pooler: str, reset: bool, autocommit: bool, detection: str
) -> None:
    """The server connection is not this client's to end, however short the lease: nobody else finds one on it."""
    events: list[Event] = []
    engine = engines(conninfo=pooler, lease=0.05, reset=reset, autocommit=autocommit, on_event=events.append)
    with psycopg.connect(pooler, prepare_threshold=None, autocommit=True) as other:
        for deadline in (None, 30.0) * 4:
            with engine.request(deadline=deadline) as conn:
                assert conn.execute("select 1").fetchone() == (1,)
            assert other.execute("show idle_session_timeout").fetchone() == ("0",)
    assert not [event for event in events if isinstance(event, Leased)]
    assert (engine.stats.connects, engine.stats.expirations) == (1, 0)


@pytest.mark.parametrize("mode", ["pgbouncer", "rds-proxy", "supavisor", "neon"])
def test_pooler_that_is_named_is_never_asked(make_engine: Any, proxy: Proxy, server: PostgresServer, mode: str) -> None:
    """Its name is enough: the first message is the user's BEGIN, and nothing is set, locked, counted or prepared."""
    events: list[Event] = []
    engine = make_engine(conninfo=proxy.reroute(server.dsn), pooler=mode, on_event=events.append)
    for _ in range(8):
        with engine.request(deadline=30) as conn:
            assert conn.execute("select 1").fetchone() == (1,)
            locks = "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            assert conn.execute(locks).fetchone() == (0,)
            assert conn.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
            assert conn.execute("show statement_timeout").fetchone() == ("0",)
    assert [event.how for event in events if isinstance(event, PoolerDetected)] == [mode]
    assert "pooler" in engine.clean().reason
    assert (engine.stats.connects, engine.stats.censuses) == (1, 0)


def test_pooler_is_noticed_before_anything_is_sent_to_it(engines: Any, server: PostgresServer) -> None:
    """By its pid: the first message of a connection is the user's BEGIN, in ``auto``, too."""
    with PgBouncer(server, pool_mode="transaction") as pooler, Proxy("127.0.0.1", pooler.port) as between:
        engine = engines(conninfo=between.reroute(pooler.dsn))
        with between.counting() as traffic:
            pid = engine.connect().info.backend_pid
        assert (traffic.queries, traffic.sent) == (["BEGIN"], ["Q"]) or could_be_pid(pid)  # one in a thousand


def test_pooler_that_is_denied_is_found_all_the_same(engines: Any, pooler: str, detection: str) -> None:
    """The setting says only that no host name is to be believed: the pids are."""
    engine = engines(conninfo=pooler, pooler="none")
    engine.connect().execute("select 1")
    assert "pooler" in engine.clean().reason


def test_statement_is_cancelled_through_a_pooler(engines: Any, pooler: str, superuser: Any) -> None:
    """At the deadline, by way of the pooler, and the server connection serves on."""
    engine = engines(conninfo=pooler)
    with pytest.raises(psycopg.errors.QueryCanceled), engine.request(deadline=0.5) as conn:
        conn.execute("select pg_sleep(60)")
    assert eventually(lambda: not is_working(superuser, ""))
    with engine.request() as conn:
        assert conn.execute("select 1").fetchone() == (1,)


def test_client_limit_of_a_pooler_is_waited_for(engines: Any, server: PostgresServer) -> None:
    """Inside the budget the request is served; after it the error names the limit."""
    with PgBouncer(server, pool_mode="transaction", max_client_conn=1) as pooler, ExitStack() as stack:
        stack.enter_context(psycopg.connect(pooler.dsn))
        with pytest.raises(TooManyConnections, match="max_client_conn") as caught:
            engines(conninfo=pooler.dsn, max_wait=0.5).connect()
        assert "no place at the pooler" in str(caught.value)
        engine = engines(conninfo=pooler.dsn, max_wait=30)
        threading.Timer(0.5, stack.close).start()
        assert engine.connect().execute("select 1").fetchone() == (1,)
        assert engine.stats.retries > 0


@pytest.mark.parametrize("setting", ["auto", "pgbouncer"])
def test_pooler_without_a_free_connection_is_waited_for(engines: Any, server: PostgresServer, setting: str) -> None:
    """New connection or old: a request waits for its turn, and is told if there was none. That is no server that is
    down, so nobody fails fast afterwards, and the idle connections stay."""
    events: list[Event] = []
    options: dict[str, str | int] = {"pool_mode": "transaction", "default_pool_size": 2}
    with PgBouncer(server, **options) as pooler, ExitStack() as stack:
        names = {"conninfo": pooler.dsn, "pooler": setting, "on_event": events.append}
        new, old = engines(**names, max_wait=0.6), engines(**names, max_wait=20.0)
        with old.request(), old.request(join=False):
            pass
        busy = [stack.enter_context(psycopg.connect(pooler.dsn)) for _ in range(2)]
        for conn in busy:
            conn.execute("select 1")
        with pytest.raises(TooManyConnections, match="default_pool_size") as caught:
            new.connect()
        assert caught.value.attempts == 1
        assert 0.5 < caught.value.waited < 5.0
        with pytest.raises(TooManyConnections, match="default_pool_size"), old.request(deadline=0.6):
            raise AssertionError("not served")
        assert old._slots.idle == 1  # the other one was left alone
        threading.Timer(0.5, busy[0].close).start()
        with old.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
        with new.request() as conn:
            assert conn.execute("select 1").fetchone() == (1,)
    assert old.stats.connects == 2
    assert not [event for event in events if isinstance(event, Down)]


def test_turn_that_the_pooler_gave_up_is_tried_again(engines: Any, server: PostgresServer) -> None:
    """``query_wait_timeout`` ends the wait before the request's own budget: it asks again, from the beginning."""
    options: dict[str, str | int] = {"pool_mode": "transaction", "default_pool_size": 1, "query_wait_timeout": 1}
    with PgBouncer(server, **options) as pooler, ExitStack() as stack:
        busy = stack.enter_context(psycopg.connect(pooler.dsn))
        busy.execute("select 1")
        engine = engines(conninfo=pooler.dsn, max_wait=30)
        threading.Timer(2.5, busy.close).start()
        assert engine.connect().execute("select 1").fetchone() == (1,)
        assert engine.stats.losses > 0
        with psycopg.connect(pooler.dsn), pytest.raises(TooManyConnections, match="query_wait_timeout") as caught:
            engines(conninfo=pooler.dsn, max_wait=1.9, max_retries=0).connect()
        assert "08P01" in str(caught.value)


@pytest.mark.parametrize("is_warm", [True, False])
def test_pooler_that_is_restarted_is_waited_for(
    engines: Any, server: PostgresServer, superuser: Any, ledger: str, is_warm: bool
) -> None:
    """Its clients are told nothing but the end of their connections: the next request connects anew, when it is up."""
    with PgBouncer(server, pool_mode="transaction") as pooler:
        engine = engines(conninfo=pooler.dsn, max_wait=30)
        if is_warm:
            engine.connect().execute("select 1")
            engine.clean()
        pooler.stop()
        with pytest.raises(AcquireTimeout, match=r"Connection refused|closed the connection"):
            engines(conninfo=pooler.dsn, max_wait=0.3).connect()
        threading.Timer(0.5, pooler.start).start()
        with engine.request() as conn:
            conn.execute("insert into ledger values (1)")
    assert entries(superuser) == [1]


def test_server_behind_a_pooler_that_is_restarted_is_waited_for(engines: Any) -> None:
    """An old connection waits in the pooler, a new one is refused and asks again; both are served inside the budget.

    If the server stays away, the error says what the pooler said.
    """
    with PostgresServer(max_connections=20) as server:
        options: dict[str, str | int] = {"pool_mode": "transaction", "default_pool_size": 2, "server_login_retry": 1}
        with PgBouncer(server, **options) as pooler:
            old, new = (engines(conninfo=pooler.dsn, max_wait=60) for _ in range(2))
            with old.request() as conn:
                conn.execute("create table visits (visitor text)")
            server.stop()
            hasty = engines(conninfo=pooler.dsn, max_wait=0.5)
            assert eventually(lambda: "server login has been failing" in refusal(hasty))
            threading.Timer(1.0, server.start).start()
            for engine, visitor in ((old, "old"), (new, "new")):
                with engine.request() as conn:
                    conn.execute("insert into visits values (%s)", [visitor])
            with old.request() as conn:
                assert conn.execute("select count(*) from visits").fetchone() == (2,)


def refusal(engine: Engine) -> str:
    """Return what an `engine` says that cannot have a connection."""
    with pytest.raises(AcquireTimeout) as caught:
        engine.connect()
    return str(caught.value)


def test_work_whose_server_connection_is_lost_is_run_again(
    engines: Any, pooler: str, superuser: Any, ledger: str
) -> None:
    """The pooler's own words for that are understood: nothing of the first run is kept."""
    engine, runs = engines(conninfo=pooler), []

    def work(conn: Any) -> None:
        [pid] = conn.execute("select pg_backend_pid()").fetchone()
        runs.append(pid)
        conn.execute("insert into ledger values (1)")
        if len(runs) == 1:
            kill(superuser, pid)
        conn.execute("select 1")

    engine.run_transaction(working(engine, work))
    assert len(runs) == 2
    assert entries(superuser) == [1]


@pytest.mark.timeout(300)
def test_many_clients_share_few_server_connections(
    engines: Any, server: PostgresServer, superuser: Any, ledger: str
) -> None:
    """200 clients on ten server connections make 5,000 requests: none fails, and nothing of one reaches another."""
    superuser.execute("drop sequence if exists served; create sequence served; grant all on sequence served to app")
    with PgBouncer(server, pool_mode="transaction", default_pool_size=10, max_client_conn=1000) as pooler:
        made = [engines(conninfo=pooler.dsn, max_size=1, max_wait=60.0) for _ in range(200)]
        problems: list[str] = []

        def work(engine: Engine, number: int) -> None:
            try:
                for _ in range(25):
                    with engine.request(deadline=60) as conn:
                        clean = "select current_setting('kit.owner', true), (select nextval('served'))"
                        owner = conn.execute(clean).fetchone()
                        if owner is None or owner[0]:
                            problems.append(f"somebody else's setting: {owner}")
                        conn.execute("select set_config('kit.owner', %s, true)", [str(number)])
            except psycopg.Error as error:
                problems.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=work, args=(engine, number)) for number, engine in enumerate(made)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert superuser.execute("select last_value from served").fetchone() == (5000,)
    assert sum(engine.stats.commits for engine in made) == 5000
    assert sum(engine.stats.losses for engine in made) == 0
