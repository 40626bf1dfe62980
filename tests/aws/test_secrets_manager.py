"""Credentials out of AWS Secrets Manager."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from support import in_child

from serverless_pg_kit import ConnectRejected, CredentialsRejected, SettingsError
from serverless_pg_kit.credentials import Cached, secrets_manager
from serverless_pg_kit.testing import PostgresServer

RDS = {
    "engine": "postgres",
    "dbClusterIdentifier": "orders",
    "host": "orders.c9.eu-central-1.rds.amazonaws.com",
    "port": 5433,
    "username": "app",
    "password": "hunter2-secret",
    "dbname": "shop",
}


def put(vault: Any, secret: object, name: str = "prod/db") -> None:
    """Let `secret` be the current version of the secret `name`."""
    text = secret if isinstance(secret, str) else json.dumps(secret)
    names = [each["Name"] for each in vault.list_secrets()["SecretList"]]
    if name in names:
        vault.put_secret_value(SecretId=name, SecretString=text)
    else:
        vault.create_secret(Name=name, SecretString=text)


def counted(credentials: Cached) -> list[object]:
    """Return a list that grows with each time that `credentials` fetch."""
    fetch, fetches = credentials._fetch, list[object]()

    def counting() -> Any:
        fetches.append(None)
        return fetch()

    credentials._fetch = counting
    return fetches


def test_secret_as_rds_writes_it(vault: Any) -> None:
    """What libpq knows is taken, under its names; the rest is left out."""
    put(vault, RDS)
    assert secrets_manager("prod/db")() == {
        "host": RDS["host"],
        "port": "5433",
        "user": "app",
        "password": "hunter2-secret",
        "dbname": "shop",
    }


def test_libpqs_own_names_will_do(vault: Any) -> None:
    """A secret that was written by hand may say it in libpq's words, and leave most to `conninfo`."""
    put(vault, {"user": "app", "password": "hunter2-secret", "sslmode": "verify-full", "database": "shop", "host": ""})
    expected = {"user": "app", "password": "hunter2-secret", "sslmode": "verify-full", "dbname": "shop"}
    assert secrets_manager("prod/db")() == expected


def test_pending_and_previous_versions_are_not_used(vault: Any) -> None:
    """While a rotation prepares a version nobody gets it, and after it nobody the one before."""
    put(vault, {"username": "app", "password": "first"})
    vault.put_secret_value(
        SecretId="prod/db", SecretString='{"username": "app", "password": "next"}', VersionStages=["AWSPENDING"]
    )
    credentials = secrets_manager("prod/db", ttl=0)
    assert credentials() == {"user": "app", "password": "first"}
    put(vault, {"username": "app", "password": "next"})
    assert credentials() == {"user": "app", "password": "next"}


def test_kept_for_its_time(vault: Any) -> None:
    """It is fetched once in `ttl` seconds by the time of day, or when it was forgotten."""
    put(vault, RDS)
    credentials, now = secrets_manager("prod/db", ttl=60.0), [1000.0]
    credentials._wall = lambda: now[0]
    fetches, seen = counted(credentials), []
    for moment in (1000.0, 1059.0, 1060.0, 1100.0, 900.0):
        now[0] = moment
        credentials()
        seen.append(len(fetches))
    assert seen == [1, 1, 2, 2, 3]
    credentials.invalidate()
    credentials()
    assert len(fetches) == 4


def test_rotation_while_warm(engines: Any, vault: Any, server: PostgresServer, superuser: Any) -> None:
    """The whole way: a cached secret is rejected, fetched once, and the request served; the warm connection lives."""
    if not superuser.execute("select 1 from pg_roles where rolname = 'by_vault'").fetchone():
        superuser.execute("create role by_vault login")
    params = conninfo_to_dict(server.dsn)

    def rotate(password: str) -> None:
        superuser.execute(sql.SQL("alter role by_vault password {}").format(password))
        put(vault, {"username": "by_vault", "password": password, "host": params["host"], "port": params["port"]})

    rotate("first-one")
    credentials = secrets_manager("prod/db")
    fetches = counted(credentials)
    engine = engines(conninfo="dbname=app", credentials=credentials)
    with engine.request() as conn:
        pid = conn.info.backend_pid
    rotate("second-one")
    with engine.request() as conn:
        assert conn.info.backend_pid == pid
        with engine.request(join=False) as second:
            assert second.info.user == "by_vault"
    assert (len(fetches), engine.stats.refusals, engine.stats.credential_refreshes) == (2, 1, 1)

    superuser.execute("alter role by_vault password 'nobody knows'")
    with engine.request(), engine.request(join=False):
        for _ in range(5):
            with pytest.raises(CredentialsRejected), engine.request(join=False):
                raise AssertionError("not served")
    assert len(fetches) <= 4  # once in five seconds


def test_threads_share_one_fetch(vault: Any) -> None:
    """Ten that ask together wait for the first."""
    put(vault, RDS)
    credentials = secrets_manager("prod/db")
    fetches = counted(credentials)
    threads = [threading.Thread(target=credentials) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetches) == 1


def test_child_asks_anew(vault: Any) -> None:
    """A forked child waits for no lock of the parent's threads, and uses no socket of its client."""
    put(vault, RDS)
    credentials = secrets_manager("prod/db")
    fetches = counted(credentials)
    credentials()

    def work() -> None:
        assert credentials() == credentials()
        assert len(fetches) == 2

    with credentials._lock:  # as if another thread were fetching
        in_child(work)
    assert len(fetches) == 1


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("hunter2-secret", "holds no JSON object"),
        ('["hunter2-secret"]', "holds no JSON object"),
        ('{"password": "hunter2-secret"', "holds no JSON object"),
        ('{"username": "app", "pass": "hunter2-secret"}', "has no password among its keys"),
    ],
)
def test_secret_of_another_form(vault: Any, secret: str, said: str) -> None:
    """The error names the secret, and shows nothing of what is in it."""
    put(vault, secret)
    with pytest.raises(SettingsError, match=r"credentials: secrets_manager\('prod/db'\) " + said) as caught:
        secrets_manager("prod/db")()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_secret_that_is_not_there(engines: Any) -> None:
    """The request hears what AWS said."""
    engine = engines(conninfo="host=127.0.0.1", credentials=secrets_manager("prod/none"))
    with pytest.raises(ConnectRejected, match=r"secrets_manager\('prod/none'\) failed: .*ResourceNotFoundException"):
        engine.connect()
    assert engine.stats.failures == 1


def test_nameless_secret() -> None:
    """An empty name, from a variable that is not set, is an error before the first request."""
    with pytest.raises(SettingsError, match="name or ARN"):
        secrets_manager("")
    with pytest.raises(SettingsError, match="number of seconds"):
        secrets_manager("prod/db", ttl=-1)
