"""Where passwords come from that change: callables for the setting ``credentials``.

An engine asks before it opens a connection, and never keeps the answer. What asking costs, a `Cached` callable saves:
it remembers its answer for some time, by the time of day, because the process's own clock stands still in a freeze.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from psycopg import pq

from serverless_pg_kit import processes
from serverless_pg_kit.errors import ConnectRejected, SettingsError

TOKEN_LIFE = 900.0
"""Seconds for which AWS takes an IAM token: it cannot be chosen."""

TOKEN_RENEWAL = 600.0
"""Seconds after which a token is not used again: well before its end, because the server looks at it last, and the
AWS credentials it was signed with may end before it does."""

SECRET_TTL = 900.0
"""Seconds for which a secret is kept. A rejection has it fetched at once, so this is for what no login refuses."""

IAM_SSLMODES = ("require", "verify-ca", "verify-full")
TIMEOUTS: Mapping[str, Any] = {
    "connect_timeout": 2,
    "read_timeout": 3,
    "retries": {"total_max_attempts": 2, "mode": "standard"},
}
"""How long AWS may be waited for: ten seconds at the utmost, like the default of ``max_wait``."""

RENAMED = {"username": "user", "database": "dbname"}
"""Keys of a secret that libpq knows by another name."""


class Cached:
    """A callable that returns what `fetch` returned, for `life` seconds at most.

    `fetch` returns libpq's parameters by name, or a connection string; it is called when nothing is kept, and by one
    thread at a time. `name` is shown as the ``repr``. Raises what `fetch` raises, and keeps nothing then. Making one
    raises `SettingsError` for arguments of another kind.
    """

    def __init__(
        self,
        fetch: Callable[[], Mapping[str, Any] | str],
        life: float,
        name: str = "",
        wall: Callable[[], float] = time.time,
    ) -> None:
        if not callable(fetch) or inspect.iscoroutinefunction(fetch):
            raise SettingsError("Cached needs a plain callable that returns libpq's parameters, not an async one")
        if not isinstance(life, (int, float)) or not life >= 0:
            raise SettingsError("Cached needs the number of seconds, 0 or more, for which an answer is kept")
        self._fetch = fetch
        self._life = life
        self.__qualname__ = name or f"Cached({getattr(fetch, '__qualname__', type(fetch).__qualname__)})"
        self._wall = wall
        self._epoch = 0
        self._start()

    def _start(self) -> None:
        self._process = processes.generation
        self._lock = threading.RLock()  # a signal handler may ask while the thread that it interrupted does
        self._kept: tuple[int, float, Mapping[str, Any] | str] | None = None

    def __call__(self) -> Mapping[str, Any] | str:
        """Return the parameters, fetched less than `life` seconds ago."""
        if self._process != processes.generation:  # another thread may have held the lock when the process was forked
            self._start()
        with self._lock:
            kept, epoch, now = self._kept, self._epoch, self._wall()
            if kept is not None and kept[0] == epoch and 0 <= now - kept[1] < self._life:
                return kept[2]
            self._kept = None
            answer = self._fetch()
            if epoch == self._epoch:
                self._kept = epoch, now, answer
            return answer

    def invalidate(self) -> None:
        """Forget what is kept: it was rejected, or must not get into a snapshot. Waits for nobody."""
        self._epoch += 1  # what another thread is fetching just now is outdated, too
        self._kept = None

    def __repr__(self) -> str:
        return self.__qualname__


def rds_iam(
    *,
    host: str,
    user: str,
    port: int = 5432,
    region: str | None = None,
    sslmode: str = "require",
    session: Any = None,
) -> Cached:
    """Return ``credentials`` that log in to Amazon RDS or Aurora with an IAM token instead of a password.

    `host` and `port` are the endpoint's own, as AWS names them: they are signed, so no alias will do. The role `user`
    must have been granted ``rds_iam``. A token is made without asking anybody, is used for ten minutes and lives for
    fifteen. `sslmode` is at least ``"require"``; a stricter one in `conninfo` stays. `region` and `session` (of boto3)
    default to those of the environment.

    Raises `SettingsError` without boto3, or for an `sslmode` that does not require TLS. Asked for a token, it raises
    `ConnectRejected` if there are no AWS credentials.
    """
    check_boto3("rds_iam")
    if sslmode not in IAM_SSLMODES:
        raise SettingsError(f"rds_iam(sslmode={sslmode!r}) is not allowed: a token is sent by TLS only, {IAM_SSLMODES}")
    name = f"rds_iam(host={host!r}, user={user!r}, port={port})"
    client = Client("rds", region, session)

    def fetch() -> dict[str, str]:
        token = ask(name, lambda: client().generate_db_auth_token(DBHostname=host, Port=port, DBUsername=user))
        return {"host": host, "port": str(port), "user": user, "password": token, "sslmode": sslmode}

    return Cached(fetch, TOKEN_RENEWAL, name)


def secrets_manager(
    secret_id: str, *, ttl: float = SECRET_TTL, region: str | None = None, session: Any = None
) -> Cached:
    """Return ``credentials`` that come from a secret of AWS Secrets Manager.

    The secret is a JSON object as RDS writes them (``username``, ``password``, ``host``, ``port``, ``dbname``), or has
    libpq's own names for keys; what libpq does not know is left out. Always the current version is used. It is kept
    for `ttl` seconds, and fetched anew when the server rejects it. `region` and `session` (of boto3) default to those
    of the environment.

    Raises `SettingsError` without boto3. Asked for the secret, it raises `ConnectRejected` if it cannot be had, and
    `SettingsError` if it has another form; nothing of it is shown.
    """
    check_boto3("secrets_manager")
    if not isinstance(secret_id, str) or not secret_id:
        raise SettingsError("secrets_manager needs the name or ARN of a secret")
    name = f"secrets_manager({secret_id!r})"
    client = Client("secretsmanager", region, session)

    def fetch() -> dict[str, str]:
        return parameters_in(ask(name, lambda: client().get_secret_value(SecretId=secret_id)), name)

    return Cached(fetch, ttl, name)


class Client:
    """Makes a boto3 client of `service` when it is first called, one in each process: its sockets are not shared."""

    def __init__(self, service: str, region: str | None, session: Any) -> None:
        self._service = service
        self._region = region
        self._session = session
        self._made: tuple[int, Any] | None = None

    def __call__(self) -> Any:
        if self._made is None or self._made[0] != os.getpid():
            session = self._session or importlib.import_module("boto3").Session()
            config = importlib.import_module("botocore.config").Config(**TIMEOUTS)
            self._made = os.getpid(), session.client(self._service, region_name=self._region, config=config)
        return self._made[1]


def check_boto3(name: str) -> None:
    """Raise `SettingsError` if boto3 is not installed."""
    if importlib.util.find_spec("boto3") is None:
        raise SettingsError(f"credentials: {name} needs boto3: pip install 'serverless-pg-kit[aws]'")


def ask(name: str, call: Callable[[], Any]) -> Any:
    """Return what `call` to AWS returns. Raises `ConnectRejected`, with AWS's own words, if that fails."""
    errors = importlib.import_module("botocore.exceptions")
    try:
        return call()
    except (errors.BotoCoreError, errors.ClientError) as error:
        raise ConnectRejected(f"credentials: {name} failed: {error}", reason=str(error)) from error


def parameters_in(answer: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return libpq's parameters in the `answer` of Secrets Manager. Raises `SettingsError`, which shows none of it."""
    import json

    try:
        secret = json.loads(answer.get("SecretString") or "")
    except ValueError:  # raised below, because the error holds the text
        secret = None
    if not isinstance(secret, dict):
        raise SettingsError(f"credentials: {name} holds no JSON object with username and password")
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    renamed = {RENAMED.get(key, key): value for key, value in secret.items()}
    params = {key: str(value) for key, value in renamed.items() if key in known and is_text(value)}
    if not params.get("password"):
        raise SettingsError(f"credentials: {name} has no password among its keys")
    return params


def is_text(value: object) -> bool:
    """Tell whether `value` says something: JSON has ports as numbers, and what RDS does not know may be empty."""
    return isinstance(value, (str, int)) and value != ""
