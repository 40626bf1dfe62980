"""Logging in with an IAM token instead of a password."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict
from support import whole_chain

from serverless_pg_kit import ConnectRejected, SettingsError
from serverless_pg_kit.credentials import TOKEN_LIFE, Cached, rds_iam
from serverless_pg_kit.testing import InstantClock, PostgresServer

ENDPOINT = "orders.c9.eu-central-1.rds.amazonaws.com"


def token_of(credentials: Cached) -> str:
    """Return the token that `credentials` give."""
    answer = credentials()
    assert isinstance(answer, dict)
    return str(answer["password"])


def by_clock(credentials: Cached, wall: Callable[[], float]) -> list[float]:
    """Let `credentials` go by the clock `wall`; return when they made tokens, which get a number each: AWS's own part
    goes by the real time."""
    make, made = credentials._fetch, list[float]()

    def numbered() -> Any:
        made.append(wall())
        answer: Any = make()
        return answer | {"password": f"{answer['password']}#{len(made)}"}

    credentials._fetch, credentials._wall = numbered, wall
    return made


def test_answer_is_what_rds_wants() -> None:
    """The token is signed for that endpoint, port and role, for fifteen minutes, and sent over TLS only."""
    answer = rds_iam(host=ENDPOINT, user="app", port=6432)()
    assert isinstance(answer, dict)
    token = urlsplit(f"//{answer.pop('password')}")
    assert answer == {"host": ENDPOINT, "port": "6432", "user": "app", "sslmode": "require"}
    signed = {name: values[0] for name, values in parse_qs(token.query).items()}
    assert token.netloc == f"{ENDPOINT}:6432"
    assert (signed["Action"], signed["DBUser"], signed["X-Amz-Expires"]) == ("connect", "app", f"{TOKEN_LIFE:.0f}")
    assert "/eu-central-1/rds-db/" in signed["X-Amz-Credential"]


def test_region_may_be_another() -> None:
    """A database elsewhere has its token signed for there."""
    assert "us-west-2%2Frds-db" in token_of(rds_iam(host=ENDPOINT, user="app", region="us-west-2"))


def test_token_is_reused_and_renewed_in_time() -> None:
    """It is used for ten of its fifteen minutes, by the time of day, and never beyond, nor before it was made."""
    now = [1_000_000.0]
    credentials = rds_iam(host=ENDPOINT, user="app")
    by_clock(credentials, lambda: now[0])
    used = []
    for second in (0.0, 599.0, 600.0, 1199.0, 4000.0, 100.0):  # the last one: the clock was set back
        now[0] = 1_000_000.0 + second
        used.append(token_of(credentials).rpartition("#")[2])
    assert used == ["1", "1", "2", "2", "3", "4"]


def test_old_token_is_never_sent(engines: Any, server: PostgresServer, superuser: Any) -> None:
    """A container that was frozen for an hour connects with a token of now; the server saw no older one."""
    params = conninfo_to_dict(server.dsn)
    clock, ages, tokens = InstantClock(), list[float](), set[str]()
    iam = rds_iam(host=str(params["host"]), port=int(str(params["port"])), user="iam_role")
    made = by_clock(iam, clock.wall)
    if not superuser.execute("select 1 from pg_roles where rolname = 'iam_role'").fetchone():
        superuser.execute("create role iam_role login")

    def credentials() -> dict[str, str]:
        answer = dict(iam(), sslmode="disable")  # type: ignore[arg-type]  # the test's server has no TLS
        ages.append(clock.wall() - made[-1])
        tokens.add(answer["password"])
        superuser.execute(f"alter role iam_role password '{answer['password']}'")
        return answer

    engine = engines(conninfo=f"dbname={params['dbname']}", credentials=credentials, lease=60)
    clock.install(engine)
    for pause in (0.0, 300.0, 3600.0, 500.0, 500.0):
        clock.freeze(pause)
        with engine.request() as conn:
            assert conn.info.user == "iam_role"
    assert max(ages) < TOKEN_LIFE
    assert len(ages) == engine.stats.connects == 5
    assert len(tokens) == len(made) == 3


def test_sslmode_is_at_least_require() -> None:
    """A token is worth as much as a password: it is not sent in clear."""
    for sslmode in ("disable", "allow", "prefer", "nonsense"):
        with pytest.raises(SettingsError, match=f"sslmode='{sslmode}'"):
            rds_iam(host=ENDPOINT, user="app", sslmode=sslmode)


def test_without_aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells what is missing, in AWS's words, and names the setting."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    import boto3  # type: ignore[import-untyped]

    session = boto3.Session()
    if session.get_credentials() is not None:
        pytest.skip("this machine has AWS credentials of its own")
    with pytest.raises(ConnectRejected, match=r"credentials: rds_iam\(.*Unable to locate credentials"):
        rds_iam(host=ENDPOINT, user="app", session=session)()


def test_no_token_is_shown(engines: Any, server: PostgresServer) -> None:
    """Neither the engine's `repr` nor an error about the login holds it."""
    params = conninfo_to_dict(server.dsn)
    iam = rds_iam(host=str(params["host"]), port=int(str(params["port"])), user="nobody_here")
    engine = engines(conninfo="dbname=app", credentials=Cached(lambda: dict(iam(), sslmode="disable"), 60.0))  # type: ignore[arg-type]
    with pytest.raises(ConnectRejected) as caught:
        engine.connect()
    signature = re.search("X-Amz-Signature=([0-9a-f]+)", token_of(iam))
    assert signature is not None
    seen = [*whole_chain(caught.value), repr(engine), repr(iam), repr(vars(engine.settings))]
    assert not [text for text in seen if signature[1] in text]
    assert repr(iam).startswith("rds_iam(host='127.0.0.1'")


def test_time_of_day_is_the_default() -> None:
    """Not the process's own clock, which stands still in a freeze."""
    assert rds_iam(host=ENDPOINT, user="app")._wall is time.time
