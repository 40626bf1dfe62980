"""Whether a refused write tells that a connection leads to the wrong server: a standby, or one turned read-only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from psycopg import Error

READ_ONLY = "25006"
"""SQLSTATE of a write in a transaction that may only read."""

CHAIN = 10
"""Causes of an error that are looked at: frameworks wrap the driver's."""


def is_refused_write(error: BaseException | None) -> bool:
    """Tell whether `error`, or one of its causes, is a write that was refused because only reading is allowed."""
    return any(isinstance(link, Error) and link.sqlstate == READ_ONLY for link in islice(chain(error), CHAIN))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_misled(statuses: tuple[bytes | None, ...], *, asked: bool) -> bool:
    """Tell whether a write that was refused would be accepted elsewhere, over another connection.

    `statuses` are what the server has said of itself since: whether it is a standby, and whether its transactions only
    read by default (``b"on"``, ``b"off"``; before version 14, and through some poolers, ``None``). If neither is so,
    the transaction was made read-only by its own statements. `asked`: the request wanted to read only.
    """
    known = [status for status in statuses if status is not None]
    return not asked and (not known or b"on" in known)
