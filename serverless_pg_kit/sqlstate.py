"""How to learn the SQLSTATE of a refused connect, which psycopg does not give and which settles every language.

libpq 17 and later trace the exchange from its start (on Linux). Earlier ones say nothing, but where no TLS is in use
the server's answer can be looked at before libpq reads it. With TLS and an old libpq the words have to do.
"""

from __future__ import annotations

import os
import re
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.pq import Trace, abc, version

TRACING_LIBPQ = 170000
"""The first version of libpq that traces the start of a connection."""

ERROR_IN_TRACE = re.compile(r'^B\t\d+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "(\w{5})"', re.MULTILINE)
LONGEST = 1 << 20
"""Bytes of a trace, or of an answer, that are looked at."""

EARLY_MESSAGES = b"ERNSKZv"
"""Types of the messages that a server sends before a connection is ready."""


TRACED_ATTEMPTS = 32
"""Attempts that are traced before it is believed that the server's words can be read."""


class TraceRation:
    """Which attempts are worth a trace, given that each leaks a little: the first ones, and those after a message
    that nobody understood. `always` is for users whose rules need every SQLSTATE."""

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self._left = TRACED_ATTEMPTS

    def next(self) -> bool:
        """Tell whether to trace the next attempt, and count it."""
        self._left -= 1
        return self._always or self._left >= 0

    def learn(self, message: str, is_understood: bool) -> None:
        """Take account of a refusal: whether the server's own words (they come with FATAL) could be read."""
        if "FATAL" in message:
            self._left = 0 if is_understood else TRACED_ATTEMPTS


@contextmanager
def overheard(pgconn: abc.PGconn, wanted: bool) -> Iterator[list[str]]:
    """Trace what `pgconn` exchanges inside the block; add the SQLSTATEs to the yielded list when it ends.

    The trace holds the authentication exchange, so it lives in memory and is dropped at once. Each use leaks about
    5 kB: psycopg makes a C stream for it that nothing closes; hence `TraceRation`.
    """
    codes: list[str] = []
    if not wanted or not hasattr(os, "memfd_create") or version() < TRACING_LIBPQ:
        yield codes
        return
    memory = os.memfd_create("serverless_pg_kit")
    try:
        pgconn.trace(memory)
        pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        yield codes
    finally:
        pgconn.untrace()  # before the descriptor is closed: its number may be given to another file
        codes += re.findall(ERROR_IN_TRACE, os.pread(memory, LONGEST, 0).decode(errors="replace"))
        os.close(memory)


def peek(pgconn: abc.PGconn) -> list[str]:
    """Return the SQLSTATEs in what has come in and is not read yet; nothing where tracing does the work."""
    if version() >= TRACING_LIBPQ or pgconn.ssl_in_use:
        return []
    with socket.socket(fileno=os.dup(pgconn.socket)) as line:
        poll = select.poll()
        poll.register(line, select.POLLIN)
        try:
            return codes_in(line.recv(LONGEST, socket.MSG_PEEK)) if poll.poll(0) else []
        except OSError:
            return []


def codes_in(data: bytes) -> list[str]:
    """Return the SQLSTATEs of the errors in `data`, whole messages of the protocol (documentation, chapter 54.7)."""
    codes: list[str] = []
    while len(data) > 5 and data[:1] in EARLY_MESSAGES:
        end = 1 + int.from_bytes(data[1:5], "big")
        if data[:1] == b"E":
            codes += [field[1:].decode(errors="replace") for field in data[5:end].split(b"\0") if field[:1] == b"C"]
        data = data[end:]
    return codes
