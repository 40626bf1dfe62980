"""One attempt to connect, bounded to the millisecond: what `psycopg.connect` cannot do.

``connect_timeout`` is at least two seconds and counts per address. This loop over libpq's own asynchronous connect
takes one address at a time inside one deadline, and answers with a plain value, `Refusal`, instead of an exception
that carries the connection and thereby the password.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from psycopg.pq import ConnStatus, PGconn, PollingStatus, Trace
from psycopg.pq import abc as pq_abc
from psycopg.pq import version as libpq_version

from serverless_pg_kit.conninfo import ConnParams, Host, scrub, secrets_in, split_hosts
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.waiting import Steps

ERROR_IN_TRACE = re.compile(r'^B\t\d+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "(\w{5})"', re.MULTILINE)
TRACE_SIZE = 1 << 20

TIMEOUT_MESSAGE = "connection timeout expired"


class Refusal(NamedTuple):
    """A failed attempt: what was said, without secrets, and the SQLSTATEs the server sent, in order."""

    message: str
    codes: tuple[str, ...] = ()


class Address(NamedTuple):
    """One address of one host, ready for libpq. `host` counts the hosts of the connection string."""

    params: ConnParams
    host: int


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
        except OSError as error:
            refusal = Refusal(f'could not translate host name "{host.name}": {error.strerror}')
    if params.get("load_balance_hosts") == "random":
        addresses.sort(key=lambda _: dice())
    return addresses or refusal


def look_up(host: Host) -> list[str]:
    """Return the IP addresses of `host`; one empty string if there is nothing to look up. Raises ``OSError``."""
    if host.hostaddr or not host.name or host.name.startswith(("/", "@")):
        return [host.hostaddr]
    found = socket.getaddrinfo(host.name, int(host.port or 5432), type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _alone(params: ConnParams, host: Host, hostaddr: str) -> ConnParams:
    one = {"host": host.name, "hostaddr": hostaddr, "port": host.port}
    rest = {name: value for name, value in params.items() if name not in (*one, "load_balance_hosts")}
    return ConnParams(rest | {name: value for name, value in one.items() if value})


def attempt(address: Address, deadline: Deadline, trace: bool) -> Steps[pq_abc.PGconn | Refusal]:
    """Connect to `address` before `deadline`; return the connection or a `Refusal`. Closes what fails.

    With `trace` the SQLSTATE of a refusal is read from libpq's trace of the exchange. That settles servers which do
    not speak English; psycopg itself gives no SQLSTATE for a failed connect.
    """
    pgconn = PGconn.connect_start(address.params.conninfo().encode())
    try:
        with traced(pgconn, trace) as codes:
            message = yield from poll_connect(pgconn, deadline)
        if message is None:
            pgconn.nonblocking = 1
            return pgconn
    except BaseException:
        pgconn.finish()
        raise
    pgconn.finish()
    return Refusal(scrub(message, secrets_in(address.params, os.environ)), tuple(codes))


def poll_connect(pgconn: pq_abc.PGconn, deadline: Deadline) -> Steps[str | None]:
    """Drive the handshake of `pgconn`; return ``None`` when it is done, otherwise what went wrong."""
    status: int = PollingStatus.FAILED if pgconn.status == ConnStatus.BAD else PollingStatus.WRITING
    while status in (PollingStatus.READING, PollingStatus.WRITING):
        remaining = deadline.remaining()
        events = select.POLLIN if status == PollingStatus.READING else select.POLLOUT
        is_ready = yield pgconn.socket, events, remaining
        if is_ready:
            status = pgconn.connect_poll()
        elif not deadline.remaining():
            return TIMEOUT_MESSAGE
    return None if status == PollingStatus.OK else pgconn.error_message.decode(errors="replace").strip()


@contextmanager
def traced(pgconn: pq_abc.PGconn, wanted: bool) -> Iterator[list[str]]:
    """Trace what `pgconn` exchanges inside the block; fill the yielded list with SQLSTATEs when it ends.

    The trace holds the authentication exchange, so it lives in memory (Linux only) and is dropped at once. Each use
    leaks about 5 kB: psycopg makes a C stream for it that nothing closes. So it is not for every attempt.
    """
    codes: list[str] = []
    if not wanted or not hasattr(os, "memfd_create") or libpq_version() < 140000:
        yield codes
        return
    memory = os.memfd_create("serverless_pg_kit")
    try:
        pgconn.trace(memory)
        pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        yield codes
    finally:
        pgconn.untrace()  # before the descriptor is closed: its number may be given to another file
        codes += re.findall(ERROR_IN_TRACE, os.pread(memory, TRACE_SIZE, 0).decode(errors="replace"))
        os.close(memory)
