"""`@with_db` under AWS's own runtime client: whatever becomes of a container, the server has the sessions it should.

Waits are bounded, but generously; ``benchmarks/lambda_overhead.py`` says how soon.
"""

from __future__ import annotations

import signal
from typing import Any

import psycopg
import pytest
from support import entries, eventually, is_working, kill, sessions

from serverless_pg_kit.testing import HandlerFailed, InitFailed, InvocationTimedOut, LambdaContainer, RuntimeExited

NO_SESSION: list[int] = []
SOON = 10.0
"""Seconds: much less than the statements in here would take."""


def has_sessions(superuser: psycopg.Connection[Any], fleet: str, count: int) -> bool:
    """Tell whether the fleet comes to that many sessions."""
    return eventually(lambda: len(sessions(superuser, fleet)) == count, SOON)


def is_at_rest(superuser: psycopg.Connection[Any], fleet: str) -> bool:
    """Tell whether the fleet's statements come to an end."""
    return eventually(lambda: not is_working(superuser, fleet), SOON)


def test_cold_and_warm(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """The first invocation connects, the next ones use the same session; each commits."""
    container = make()
    container.start()
    assert sessions(superuser, fleet) == NO_SESSION
    backends = [container.invoke({"entry": entry}) for entry in range(3)]

    assert sessions(superuser, fleet) == [backends[0]]
    assert backends == [backends[0]] * 3
    assert entries(superuser) == [0, 1, 2]


def test_hundred_freezes(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """A container that is frozen between invocations keeps its session through a hundred of them."""
    container = make(frozen=True)
    backends = {container.invoke({"entry": entry}) for entry in range(100)}

    assert sessions(superuser, fleet) == list(backends)
    assert entries(superuser) == list(range(100))
    assert container.starts == 1


def test_session_lost_in_a_freeze(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """A session that is ended while its container is frozen is replaced unseen, and nothing is done twice."""
    container = make(frozen=True)
    for entry in range(3):
        kill(superuser, container.invoke({"entry": entry}))

    assert container.invoke({"entry": 3}) in sessions(superuser, fleet)
    assert entries(superuser) == [0, 1, 2, 3]


def test_handler_error(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """An error of the handler's arrives at the platform and rolls back; the session serves the next invocation."""
    container = make()
    backend = container.invoke({})
    with pytest.raises(HandlerFailed, match="LookupError: mine"):
        container.invoke({"entry": 1, "act": "raise LookupError('mine')"})

    assert container.invoke({"entry": 2}) == backend
    assert sessions(superuser, fleet) == [backend]
    assert entries(superuser) == [2]


def test_database_error(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """So does one of the database's."""
    container = make()
    with pytest.raises(HandlerFailed) as caught:
        container.invoke({"entry": 1, "act": "conn.execute('select 1/0')"})

    assert caught.value.error_type == "DivisionByZero"
    assert sessions(superuser, fleet) == [container.invoke({})]
    assert entries(superuser) == []


def test_initialisation_error(make: Any, superuser: Any, fleet: str) -> None:
    """What a module opened before it failed is gone, each time it is tried."""
    container = make(code="engine.connect()\nraise LookupError('in init')")
    for _ in range(2):
        with pytest.raises(InitFailed, match="LookupError: in init"):
            container.invoke({})
        assert has_sessions(superuser, fleet, 0)


@pytest.mark.parametrize("handler", ["careless_handler", "slow_handler"])
def test_time_out_in_a_query(make: Any, superuser: Any, fleet: str, handler: str) -> None:
    """A container that is killed at its deadline, or crashes before, leaves no query and no session."""
    container = make(handler)
    invocation = container.start_invocation({}, timeout=3.0 if handler == "careless_handler" else 60)
    assert eventually(lambda: is_working(superuser, fleet))
    if handler == "careless_handler":
        with pytest.raises(InvocationTimedOut):
            invocation.result()
    else:
        container.close()

    assert is_at_rest(superuser, fleet)
    assert has_sessions(superuser, fleet, 0)


def test_time_out_in_a_transaction(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """What a killed invocation had written is not there; the next one works in a new process."""
    container = make()
    with pytest.raises(InvocationTimedOut):
        container.invoke({"entry": 1, "act": "time.sleep(60)"}, timeout=1.0)
    assert has_sessions(superuser, fleet, 0)

    container.invoke({"entry": 2})
    assert has_sessions(superuser, fleet, 1)
    assert entries(superuser) == [2]


@pytest.mark.parametrize(("act", "status"), [("sys.exit(5)", 5), ("os._exit(3)", 3), ("os.abort()", -signal.SIGABRT)])
def test_exit_in_the_handler(make: Any, superuser: Any, fleet: str, ledger: str, act: str, status: int) -> None:
    """A process that ends in the middle takes its session with it and commits nothing."""
    container = make()
    with pytest.raises(RuntimeExited) as caught:
        container.invoke({"entry": 1, "act": act})
    assert caught.value.status == status
    assert has_sessions(superuser, fleet, 0)

    container.invoke({"entry": 2})
    assert entries(superuser) == [2]


@pytest.mark.parametrize(("code", "status"), [("", -signal.SIGKILL), ("close_on_sigterm(engine)", 0)])
def test_removal(make: Any, superuser: Any, fleet: str, code: str, status: int) -> None:
    """A container that is removed leaves no session: killed without a word, or with a SIGTERM that the kit hears."""
    container = make(code=code)
    container.invoke({})

    assert container.shut_down(grace=SOON if code else None) == status
    assert has_sessions(superuser, fleet, 0)


def test_snapshot(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """A snapshot holds no session, although the initialisation used one; what is restored connects when it is asked."""
    container = make(code="with engine.request() as conn:\n    conn.execute('select 1')", snap_start=True)
    container.take_snapshot()
    assert has_sessions(superuser, fleet, 0)
    container.start()
    assert sessions(superuser, fleet) == NO_SESSION

    backend = container.invoke({"entry": 1})
    assert container.invoke({"entry": 2}) == backend
    assert sessions(superuser, fleet) == [backend]


TOGETHER = """
open(os.path.join(os.environ["TMPDIR"], str(event["entry"])), "w").close()
while len(os.listdir(os.environ["TMPDIR"])) < 6:
    time.sleep(0.01)
"""
"""Goes on when six invocations have come to it: processes of one container share their temporary files."""


def test_managed_instances(make: Any, superuser: Any, fleet: str, ledger: str) -> None:
    """Six workers have a session each; one that crashes takes its own, and the others work on."""
    container = make(workers=6)
    many = [container.start_invocation({"entry": n, "act": TOGETHER}) for n in range(6)]
    backends = {invocation.result() for invocation in many}
    assert len(backends) == 6
    assert set(sessions(superuser, fleet)) == backends
    with pytest.raises(RuntimeExited):
        container.invoke({"entry": 6, "act": "os._exit(3)"})
    assert has_sessions(superuser, fleet, 5)

    assert container.invoke({"entry": 7}) in backends
    assert entries(superuser) == [0, 1, 2, 3, 4, 5, 7]
    container.close()
    assert has_sessions(superuser, fleet, 0)


def test_time_limit_of_managed_instances(make: Any, superuser: Any, fleet: str) -> None:
    """Nobody kills a handler there: its query ends by the kit's own limit, and it serves on."""
    container = make("slow_handler", workers=1, environment={"SERVERLESS_PG_DEADLINE_MARGIN": "2.5"})
    container.start()

    assert container.invoke({}, timeout=4.0)["statusCode"] == 503
    assert is_at_rest(superuser, fleet)
    assert container.starts == 1


def test_more_containers_than_slots(make: Any, tiny_server: Any) -> None:
    """Twelve containers take turns on five slots: nobody fails."""
    environment = {"DATABASE_URL": tiny_server.dsn, "SERVERLESS_PG_MAX_WAIT": "30"}
    containers: list[LambdaContainer] = [make(frozen=True, environment=environment) for _ in range(12)]
    for _ in range(4):
        running = [container.start_invocation({"act": "conn.execute('select 1')"}) for container in containers]
        for invocation in running:
            assert invocation.result(timeout=100) > 0
