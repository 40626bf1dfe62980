"""One attempt to connect, bounded to the millisecond: what `psycopg.connect` cannot do.

``connect_timeout`` is at least two seconds and counts per address. This loop over libpq's own asynchronous connect
takes one address at a time inside one deadline, and answers with a plain value, `Refusal`, instead of an exception
that carries the connection and thereby the password.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from psycopg.pq import ConnStatus, PGconn, PollingStatus
from psycopg.pq import abc as pq_abc

from serverless_pg_kit.conninfo import ConnParams, Host, parameter, scrub, secrets_in, split_hosts
from serverless_pg_kit.decisions.classify import RULES
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.sqlstate import overheard, peek
from serverless_pg_kit.waiting import Steps

UNEXPECTED_END = "SSL error: unexpected eof while reading"
"""libpq's words for a server that hangs up in the TLS handshake, as one does that knows no direct one."""

TIMEOUT_MESSAGE = "connection timeout expired"

CERTIFICATE_REFUSED = "certificate verify failed"
"""libpq's words for any certificate that does not stand up to the authorities."""


class Refusal(NamedTuple):
    """A failed attempt: what was said, without secrets, and the SQLSTATEs the server sent, in order."""

    message: str
    codes: tuple[str, ...] = ()


class Address(NamedTuple):
    """One address of one host, ready for libpq. `host` counts the hosts of the connection string."""

    params: ConnParams
    host: int

    @property
    def described(self) -> str:
        """The beginning of a message about it, in libpq's words; empty for what libpq finds out by itself."""
        name, port = self.params.get("host") or self.params.get("hostaddr"), self.params.get("port", "5432")
        return f'connection to server at "{name}", port {port} failed: ' if name else ""


def resolve(params: ConnParams, environ: Mapping[str, str], dice: Callable[[], float]) -> list[Address] | Refusal:
    """Return the addresses to try in order, or a `Refusal` if no host name resolves.

    Names are looked up anew each time: a failover changes them. The resolver bounds its own time (`RES_OPTIONS`);
    nothing else can without a thread. A service file is left to libpq. With ``load_balance_hosts=random`` the order
    is shuffled by `dice`.
    """
    if "service" in params or "PGSERVICE" in environ:
        return [Address(params, 0)]
    addresses: list[Address] = []
    refusal = Refusal("could not translate host name: none given")
    for number, host in enumerate(split_hosts(params, environ)):
        try:
            addresses += [Address(_alone(params, host, hostaddr), number) for hostaddr in look_up(host)]
        except (OSError, UnicodeError) as error:
            refusal = Refusal(f'could not translate host name "{host.name}": {error}')
    if parameter(params, environ, "load_balance_hosts") == "random":
        addresses.sort(key=lambda _: dice())
    if parameter(params, environ, "target_session_attrs") == "prefer-standby":
        return prefer_standby(addresses) or refusal
    return addresses or refusal


def prefer_standby(addresses: list[Address]) -> list[Address]:
    """Return `addresses` twice: first as standbys only, then as they come. libpq does it only within one string."""
    return [
        Address(ConnParams(address.params | {"target_session_attrs": wanted}), address.host + number * len(addresses))
        for number, wanted in enumerate(("standby", "any"))
        for address in addresses
    ]


def look_up(host: Host) -> list[str]:
    """Return the IP addresses of `host`; one empty string if there is nothing to look up. Raises ``OSError``."""
    if host.hostaddr or not host.name or host.name.startswith(("/", "@")):
        return [host.hostaddr]
    found = socket.getaddrinfo(host.name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _alone(params: ConnParams, host: Host, hostaddr: str) -> ConnParams:
    one = {"host": host.name, "hostaddr": hostaddr, "port": host.port}
    rest = {name: value for name, value in params.items() if name not in (*one, "load_balance_hosts")}
    return ConnParams(rest | {name: value for name, value in one.items() if value})


def attempt(address: Address, deadline: Deadline, trace: bool) -> Steps[pq_abc.PGconn | Refusal]:
    """Connect to `address` before `deadline`; return the connection or a `Refusal`. Closes what fails.

    With `trace` the SQLSTATE of a refusal is looked for by all means (see `sqlstate`).
    """
    pgconn = PGconn.connect_start(address.params.conninfo().encode())
    try:
        with overheard(pgconn, trace) as codes:
            message = yield from poll_connect(pgconn, deadline, codes, address)
        if message is None:
            pgconn.nonblocking = 1
            return pgconn
    except BaseException:
        pgconn.finish()
        raise
    pgconn.finish()
    if message.endswith(UNEXPECTED_END) and parameter(address.params, os.environ, "sslnegotiation") == "direct":
        message += " (sslnegotiation=direct needs PostgreSQL 17 or later, and few poolers know it)"
    return Refusal(scrub(message, telling(secrets_in(address.params, os.environ))), tuple(codes))


def telling(secrets: Iterable[str]) -> list[str]:
    """Return those of `secrets` that are no plain word of an error message: masking "password" would only garble it."""
    words = {word for rule in RULES for text in rule.texts for word in text.split()}
    return [secret for secret in secrets if secret.lower() not in words]


def poll_connect(pgconn: pq_abc.PGconn, deadline: Deadline, codes: list[str], address: Address) -> Steps[str | None]:
    """Drive the handshake of `pgconn` with `address`; return ``None`` when it is done, otherwise what went wrong.

    Adds to `codes` the SQLSTATEs that could be seen on the way.
    """
    status: int = PollingStatus.FAILED if pgconn.status == ConnStatus.BAD else PollingStatus.WRITING
    while status in (PollingStatus.READING, PollingStatus.WRITING):
        remaining = deadline.remaining()
        events = select.POLLIN if status == PollingStatus.READING else select.POLLOUT
        is_ready = yield pgconn.socket, events, remaining
        if is_ready:
            if status == PollingStatus.READING:  # earlier, a look would take the error of the connect() from libpq
                codes += peek(pgconn)
            status = pgconn.connect_poll()
        elif not deadline.remaining():
            return f"{address.described}{TIMEOUT_MESSAGE}"
    return None if status == PollingStatus.OK else pgconn.error_message.decode(errors="replace").strip()
