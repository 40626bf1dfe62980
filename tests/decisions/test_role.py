"""What a refused write tells about the server, decided without one."""

from __future__ import annotations

import psycopg
import pytest

from serverless_pg_kit.decisions.role import is_misled, is_refused_write


@pytest.mark.parametrize(
    ("standby", "default", "asked", "misled"),
    [
        (b"on", b"off", False, True),
        (b"off", b"on", False, True),
        (b"off", b"off", False, False),  # its own SET TRANSACTION READ ONLY
        (None, None, False, True),  # before version 14, or through a pooler: nothing is known
        (b"on", b"off", True, False),
        (None, None, True, False),
    ],
)
def test_server_is_left_only_if_another_may_take_the_write(
    standby: bytes | None, default: bytes | None, asked: bool, misled: bool
) -> None:
    """Not if the request itself wanted to read only."""
    assert is_misled((standby, default), asked=asked) is misled


def wrapped(error: BaseException, *, cause: bool) -> Exception:
    """Return an error as a framework raises it around the driver's `error`."""
    outer = ValueError("wrapped")
    if cause:
        outer.__cause__ = error
    else:
        outer.__context__ = error
    return outer


REFUSED = psycopg.errors.ReadOnlySqlTransaction()


@pytest.mark.parametrize("error", [REFUSED, wrapped(REFUSED, cause=True), wrapped(REFUSED, cause=False)])
def test_refused_write_is_seen_behind_a_frameworks_error(error: Exception) -> None:
    """By its SQLSTATE, as far down as it may be."""
    assert is_refused_write(error)


def test_other_errors_are_no_refused_writes() -> None:
    """Nor is none at all, nor a chain that bites its own tail."""
    snake = ValueError()
    snake.__context__ = KeyError()
    snake.__context__.__context__ = snake
    for error in (None, snake, psycopg.errors.UniqueViolation(), wrapped(ValueError(), cause=True)):
        assert not is_refused_write(error)
