"""The setting ``credentials``: who is asked when, what a rotation does, and that a wrong secret is hammered nowhere."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import SYNC_ONLY, eventually, whole_chain

from serverless_pg_kit import AcquireTimeout, ConnectRejected, CredentialsRejected, Engine, SettingsError
from serverless_pg_kit.clock import Clock
from serverless_pg_kit.credentials import Cached
from serverless_pg_kit.events import Closed, CredentialsRefreshed, Event, Refused
from serverless_pg_kit.testing import PostgresServer

ROLES = ("rotating", "rotating_clone")


class Vault:
    """A service with the password of a role, which counts how often it is asked. `answer` is what it says now."""

    def __init__(self, **answer: Any) -> None:
        self.answer: Any = answer
        self.asked = 0

    def __call__(self) -> Any:
        self.asked += 1
        return dict(self.answer)


def set_password(superuser: psycopg.Connection[Any], role: str, password: str) -> None:
    """Rotate."""
    superuser.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), password))


@pytest.fixture
def base(server: PostgresServer, superuser: psycopg.Connection[Any]) -> str:
    """The connection string without user and password. There are two roles, whose password is ``first-one``."""
    for role in ROLES:
        if not superuser.execute("select 1 from pg_roles where rolname = %s", [role]).fetchone():
            superuser.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
        set_password(superuser, role, "first-one")
    params = conninfo_to_dict(server.dsn)
    return make_conninfo("", host=params["host"], port=params["port"], dbname=params["dbname"])


@pytest.fixture
def vault() -> Vault:
    """Has the right password."""
    return Vault(user="rotating", password="first-one")


def refusals(events: list[Event]) -> int:
    """Return how many attempts to connect the server refused."""
    return sum(isinstance(event, Refused) for event in events)


def who(engine: Engine) -> tuple[Any, ...]:
    """Return the role and the backend's pid that a request on `engine` gets."""
    with engine.request() as conn:
        row: tuple[Any, ...] | None = conn.execute("select session_user::text, pg_backend_pid()").fetchone()
    assert row is not None
    return row


def test_asked_for_new_connections_only(engines: Any, base: str, vault: Vault) -> None:
    """A warm request asks nobody; every new connection does, and the answer comes over the settings' own."""
    engine = engines(conninfo=make_conninfo(base, user="app", password="unused-one"), credentials=vault)
    assert vault.asked == 0
    assert [who(engine)[0] for _ in range(3)] == ["rotating"] * 3
    assert vault.asked == 1
    with engine.request(), engine.request(join=False):
        pass
    assert vault.asked == 2


def test_connection_string_is_an_answer(engines: Any, base: str) -> None:
    """A string will do as well as a mapping."""
    engine = engines(conninfo=base, credentials=lambda: "user=rotating password=first-one")
    assert who(engine)[0] == "rotating"


def test_password_rotated_while_warm(engines: Any, superuser: Any, base: str, vault: Vault) -> None:
    """The open connection goes on, before and after others use the new password; no attempt is refused."""
    events: list[Event] = []
    engine = engines(conninfo=base, credentials=vault, on_event=events.append)
    before = who(engine)
    set_password(superuser, "rotating", "second-one")
    vault.answer["password"] = "second-one"
    assert who(engine) == before
    with engine.request() as first, engine.request(join=False) as second:
        assert first.info.backend_pid == before[1] != second.info.backend_pid
    assert before in {who(engine), who(engine)}
    assert vault.asked == 2
    assert refusals(events) == engine.stats.credential_refreshes == 0
    assert not [event for event in events if isinstance(event, Closed)]


def test_cached_secret_is_refreshed_once(engines: Any, superuser: Any, base: str, vault: Vault) -> None:
    """A rotation that a cache has missed costs one refused attempt and one look at the vault, without a pause."""
    events: list[Event] = []
    cached = Cached(vault, 3600.0)
    cached()
    set_password(superuser, "rotating", "second-one")
    vault.answer["password"] = "second-one"
    engine = engines(conninfo=base, credentials=cached, on_event=events.append)
    assert who(engine)[0] == "rotating"
    assert (vault.asked, refusals(events), engine.stats.retries) == (2, 1, 0)
    [refreshed] = [event for event in events if isinstance(event, CredentialsRefreshed)]
    assert refreshed.changed


def test_wrong_secret_is_hammered_nowhere(engines: Any, server: PostgresServer, base: str) -> None:
    """The same wrong answer is not sent twice. Request after request, the server sees one attempt each, and the vault
    is asked once in five seconds, by the time of day."""
    vault, now = Vault(user="rotating", password="wrong-one"), [1000.0]
    engine = engines(conninfo=base, credentials=Cached(vault, 3600.0))
    engine._live_by(Clock(wall=lambda: now[0]))
    logged = len(server.log)
    for number in range(6):
        with pytest.raises(CredentialsRejected, match="what `credentials` returns"):
            engine.connect()
        assert engine.stats.refusals == number + 1
        assert vault.asked == 2
    now[0] += 5.0
    with pytest.raises(CredentialsRejected):
        engine.connect()
    assert vault.asked == 3
    said = 'password authentication failed for user "rotating"'
    assert eventually(lambda: server.log[logged:].count(said) == 7)


def test_second_rejection_ends_it(engines: Any, base: str) -> None:
    """A callable that says something else each time gets two attempts, no more."""
    answers = iter(range(100))
    engine = engines(conninfo=base, credentials=lambda: {"user": "rotating", "password": f"wrong-{next(answers)}"})
    with pytest.raises(CredentialsRejected):
        engine.connect()
    assert (engine.stats.refusals, next(answers)) == (2, 2)


def test_request_without_time_is_not_begun_again(engines: Any, base: str, vault: Vault) -> None:
    """With ``max_wait=0``, one attempt, a rotation is still survived: the second one waits for nothing."""
    vault.answer["password"] = "stale-one"
    cached = Cached(vault, 3600.0)
    cached()
    vault.answer["password"] = "first-one"
    assert who(engines(conninfo=base, credentials=cached, max_wait=0))[0] == "rotating"


def test_many_that_were_rejected_at_once(engines: Any, superuser: Any, base: str, vault: Vault) -> None:
    """Of ten requests that meet the rotation together, one has the cache forgotten, and all are served."""
    cached = Cached(vault, 3600.0)
    cached()
    set_password(superuser, "rotating", "second-one")
    vault.answer["password"] = "second-one"
    engine = engines(conninfo=base, credentials=cached, max_size=10)
    barrier, served = threading.Barrier(10), []

    def serve() -> None:
        with engine.scope() as scope:
            barrier.wait(30)
            served.append(scope.connection.info.user)
            barrier.wait(30)

    threads = [threading.Thread(target=serve) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == ["rotating"] * 10
    assert vault.asked == 2


def test_another_role_replaces_idle_connections(engines: Any, base: str, vault: Vault) -> None:
    """When the answer names another role, the connections of the first serve nobody any more, once that was seen."""
    events: list[Event] = []
    engine = engines(conninfo=base, credentials=vault, on_event=events.append)
    with engine.request(), engine.request(join=False):
        pass
    vault.answer["user"] = "rotating_clone"
    with engine.request(), engine.request(join=False) as second, engine.request(join=False) as third:
        assert second.info.user == "rotating"  # not seen before the third asks
        assert third.info.user == "rotating_clone"
    with engine.request() as one, engine.request(join=False) as other, engine.request(join=False) as last:
        assert {one.info.user, other.info.user, last.info.user} == {"rotating_clone"}
    closed = [event.reason for event in events if isinstance(event, Closed)]
    assert closed == ["the credentials are others now"] * 2


def test_tenants_over_credentials(engines: Any, base: str, vault: Vault) -> None:
    """What a request names comes over what the credentials say; its own wrong password is not blamed on them."""
    address = conninfo_to_dict(base)
    vault.answer |= {"host": address["host"], "port": address["port"]}
    cached = Cached(vault, 3600.0)
    engine = engines(conninfo="dbname=postgres", credentials=cached)
    with engine.request(conninfo="dbname=app") as conn:
        assert (conn.info.dbname, conn.info.user) == ("app", "rotating")
    with engine.request(conninfo={"user": "rotating_clone", "password": "first-one"}) as conn:
        assert (conn.info.dbname, conn.info.user) == ("postgres", "rotating_clone")
    with pytest.raises(CredentialsRejected), engine.request(conninfo="user=rotating_clone password=guessed"):
        raise AssertionError("not served")
    assert (vault.asked, engine.stats.credential_refreshes, engine.stats.refusals) == (1, 0, 1)


def test_another_server_is_not_taken_for_down(engines: Any, base: str, vault: Vault) -> None:
    """When the credentials name another host, what was seen of the first does not count any more."""
    vault.answer |= {"host": "127.0.0.1", "port": "1"}
    engine = engines(conninfo=base, credentials=vault, max_wait=0.5, down_ttl=3600)

    def attempts() -> int:
        with pytest.raises(AcquireTimeout) as caught:
            engine.connect()
        return caught.value.attempts

    assert (attempts() > 1, attempts()) == (True, 1)
    vault.answer["port"] = "2"
    assert (attempts() > 1, attempts()) == (True, 1)
    vault.answer["port"] = conninfo_to_dict(base)["port"]
    assert who(engine)[0] == "rotating"


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """Yield the messages that the kit logs in the block."""
    records: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler, logger = Recorder(logging.DEBUG), logging.getLogger("serverless_pg_kit")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


def raising() -> Any:
    """Show the secret in an exception, as parsers do."""
    raise LookupError("hunter2-secret is no JSON")


NONSENSE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (raising, ConnectRejected, r"`credentials` raised LookupError in raising \(test_credentials\.py, line \d+\)"),
    (lambda: ["hunter2-secret"], SettingsError, "what `credentials` returned is a list"),
    (lambda: None, SettingsError, "what `credentials` returned is a NoneType"),
    (lambda: "hunter2-secret", SettingsError, "what `credentials` returned is not a connection string"),
    (lambda: {"passwort": "hunter2-secret"}, SettingsError, "libpq does not know, among passwort"),
    (lambda: {"password": b"hunter2-secret"}, SettingsError, "what `credentials` returned has a parameter"),
    (lambda: {"host": "hunter2-secret@h"}, SettingsError, "what `credentials` returned has a host"),
    (lambda: {"application_name": "a:b"}, SettingsError, "has an application_name"),
    (lambda: {"user": "rotating", "password": "hunter2-secret"}, CredentialsRejected, "password authentication failed"),
]


@pytest.mark.parametrize(("answer", "error", "said"), NONSENSE, ids=range(len(NONSENSE)))
def test_callable_that_fails_is_named(
    engines: Any, base: str, answer: Callable[[], Any], error: type[Exception], said: str
) -> None:
    """What is wrong with the callable is told, no secret is, anywhere, and nothing is left open."""
    events: list[Event] = []
    engine = engines(conninfo=base, credentials=answer, on_event=events.append)
    with recorded() as records, pytest.raises(error, match=said) as caught:
        engine.connect()
    seen = [*whole_chain(caught.value), repr(events), repr(engine), *records]
    assert not [text for text in seen if "hunter2-secret" in text]
    assert (engine.stats.open, engine.stats.in_use, engine.stats.failures) == (0, 0, 1)


def test_error_of_the_kits_own_passes(engines: Any, base: str) -> None:
    """A provider that knows what to say says it by one of the kit's errors."""
    mine = ConnectRejected("the vault is sealed")

    def sealed() -> Any:
        raise mine

    with pytest.raises(ConnectRejected) as caught:
        engines(conninfo=base, credentials=sealed).connect()
    assert caught.value is mine


@SYNC_ONLY
def test_callable_that_uses_its_own_engine(engines: Any, base: str) -> None:
    """It cannot get the connection that it is asked for; that is an error and no standstill, through a cache, too."""

    def ask() -> Any:
        return {"password": engine.connection.info.password}

    def ask_anew() -> Any:
        with engine.request() as conn:
            return {"password": conn.info.password}

    for credentials in (ask, Cached(ask, 60.0), ask_anew, Cached(ask_anew, 60.0)):
        engine = engines(conninfo=base, credentials=credentials, max_wait=0.5, max_size=2)
        with engine.scope() as scope, pytest.raises((ConnectRejected, AcquireTimeout)):
            assert scope.connection
        assert engine.stats.in_use == 0


def test_callable_that_blocks_is_named(engines: Any, base: str, vault: Vault) -> None:
    """An answer that comes too late is none. (The blocking shell cannot go on before it comes.)"""

    def slow() -> Any:
        time.sleep(0.6)
        return vault()

    engine = engines(conninfo=base, credentials=slow, max_wait=0.3)
    started = time.monotonic()
    with pytest.raises(AcquireTimeout, match="`credentials` had not answered after"):
        engine.connect()
    assert 0.3 <= time.monotonic() - started < 10.0
    assert engine.stats.refusals == 0


def test_partial_shows_no_arguments() -> None:
    """Neither what holds the secret of a callable nor a secret in its place is shown."""
    import functools

    engine = Engine(credentials=functools.partial(dict, password="hunter2-secret"))
    assert "hunter2-secret" not in repr(engine)
    with pytest.raises(SettingsError, match="credentials=a dict that is not shown is not allowed") as caught:
        Engine(credentials={"password": "hunter2-secret"})
    assert "hunter2-secret" not in str(caught.value)


def test_async_function_needs_the_async_engine(base: str) -> None:
    """Nobody would await it."""

    async def later() -> Any:
        raise AssertionError("not awaited")

    with pytest.raises(SettingsError, match="credentials is an async function: it needs AsyncEngine"):
        Engine(conninfo=base, credentials=later).connect()


def test_secret_goes_nowhere_else(engines: Any, server: PostgresServer, base: str) -> None:
    """An answer that names another user takes neither the settings' password along nor that of the environment."""
    engine = engines(conninfo=server.dsn, credentials=lambda: {"user": "rotating"})
    with pytest.raises(CredentialsRejected, match="no password supplied"):
        engine.connect()


def test_credentials_cannot_turn_encryption_off(make_engine: Any, base: str, vault: Vault) -> None:
    """Where `conninfo` requires TLS, an answer with a laxer `sslmode` sends no password in plain text."""
    vault.answer["sslmode"] = "disable"
    plain = make_engine(conninfo=f"{base} sslmode=disable", credentials=vault)
    assert who(plain)[0] == "rotating"

    engine = make_engine(conninfo=f"{base} sslmode=require", credentials=vault)
    with pytest.raises(ConnectRejected, match="does not support SSL"), engine.request():
        pass
    assert engine.stats.connects == 0
