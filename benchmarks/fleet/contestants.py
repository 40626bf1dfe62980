"""Who answers: the kit, and the two ways that a good engineer writes by hand, with the same patience.

Every container has a client of its own; clients share nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol

import psycopg

from serverless_pg_kit import Engine, Settings
from serverless_pg_kit.settings import read_text, reject_unknown

MAX_WAIT = 30.0
BACKOFF_BASE, BACKOFF_GROWTH, BACKOFF_CAP = 0.05, 3, 2.0
GROWN = 8  # retries after which the cap holds anyway
CONNECT_TIMEOUT = 5  # seconds of one attempt, as in the kit


class Client(Protocol):
    """What a container holds between its requests."""

    def serve(self, query: bytes) -> None:
        """Run `query` in a transaction and commit it. Raises what the user would see."""

    def close(self) -> None:
        """Close what is open."""

    def counts(self) -> dict[str, int]:
        """Return what happened so far, by name."""
        ...


class Contestant(NamedTuple):
    """A name, how to `make` a client for a DSN, and whether it is `plain`: written by hand, without the kit."""

    name: str
    make: Callable[[str], Client]
    plain: bool


class Kit:
    """An engine."""

    def __init__(self, dsn: str, **names: Any) -> None:
        self._engine = Engine(**{"max_wait": MAX_WAIT} | names | {"conninfo": dsn})

    def serve(self, query: bytes) -> None:
        """Run `query` as one request."""
        with self._engine.request() as conn:
            conn.execute(query)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def counts(self) -> dict[str, int]:
        """Return the engine's stats, whatever fields they have."""
        return self._engine.stats._asdict()


class ByHand:
    """What both hand-written clients do alike: connect, with jitter and exponential back-off, and count."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connects = 0
        self._refusals = 0

    def counts(self) -> dict[str, int]:
        """Return connects and refused attempts."""
        return {"connects": self._connects, "refusals": self._refusals}

    def _connect(self) -> psycopg.Connection[Any]:
        give_up, retries = time.monotonic() + MAX_WAIT, 0
        while True:
            try:
                conn = psycopg.connect(self._dsn, connect_timeout=CONNECT_TIMEOUT)
                self._connects += 1
                return conn
            except psycopg.OperationalError:
                self._refusals += 1
                remaining = give_up - time.monotonic()
                if remaining <= 0:
                    raise
            ceiling = min(BACKOFF_CAP, BACKOFF_BASE * BACKOFF_GROWTH ** min(retries, GROWN))
            retries += 1
            time.sleep(min(random.random() * ceiling, remaining))


class ModuleLevel(ByHand):
    """One connection, kept until it breaks."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._conn: psycopg.Connection[Any] | None = None

    def serve(self, query: bytes) -> None:
        """Run `query` on the connection that is kept, or on a new one if there is none."""
        if self._conn is None or self._conn.closed:
            self._conn = self._connect()
        try:
            self._conn.execute(query)
            self._conn.commit()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class PerRequest(ByHand):
    """A new connection for each request."""

    def serve(self, query: bytes) -> None:
        """Connect, run `query`, commit, close."""
        with self._connect() as conn:
            conn.execute(query)

    def close(self) -> None:
        """Nothing stays open between requests."""


CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("kit", Kit, plain=False),
        Contestant("module-level", ModuleLevel, plain=True),
        Contestant("per-request", PerRequest, plain=True),
    )
}


def parse_contestants(text: str) -> list[Contestant]:
    """Return the contestants in a text such as ``"kit,per-request"``. Raises ``ValueError`` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CONTESTANTS:
            raise ValueError(f"{name!r} is no contestant: there are {', '.join(CONTESTANTS)}")
    return [CONTESTANTS[name] for name in dict.fromkeys(names)]


def parse_variants(texts: Iterable[str]) -> list[Contestant]:
    """Return the kit with other settings, one variant for each text such as ``"strategy=ranked,census_ttl=1"``.

    Raises ``ValueError`` for what is no setting or not allowed.
    """
    return [_parse_variant(text) for text in texts]


def _parse_variant(text: str) -> Contestant:
    pairs = [[side.strip() for side in part.split("=", 1)] for part in text.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"{text!r} is no variant: it takes NAME=VALUE, or several with commas")
    texts = {name: value for name, value in pairs}
    reject_unknown(texts)
    if "conninfo" in texts:
        raise ValueError("conninfo is that of the soak's own server")
    names: dict[str, Any] = {name: read_text(name, value) for name, value in texts.items()}
    Settings(**names)
    return Contestant(f"kit {text}", partial(Kit, **names), plain=False)
