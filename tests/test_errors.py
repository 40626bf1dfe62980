from __future__ import annotations

import pickle

import psycopg
import pytest

from serverless_pg_kit import errors

EXAMPLES = [
    errors.ServerlessPgError("x"),
    errors.AcquireTimeout("x", waited=1.5, attempts=3, last_error="full"),
    errors.TooManyConnections("x", waited=1.5, attempts=3, last_error="full"),
    errors.ConnectRejected("x", reason="no", code="3D000"),
    errors.CredentialsRejected("x", reason="no", code="28P01"),
    errors.TransactionFailed("x"),
    errors.CommitUnknown("x"),
    errors.SettingsError("x"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling_with_their_numbers(error: psycopg.Error) -> None:
    """An error can cross a process boundary and still tells what it knew."""
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    public = {name for name in vars(error) if not name.startswith("_")}
    assert {name: getattr(copy, name) for name in public} == {name: getattr(error, name) for name in public}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_existing_handlers_keep_working(error: psycopg.Error) -> None:
    """Code that catches psycopg.OperationalError catches all of ours."""
    assert isinstance(error, psycopg.OperationalError)


def test_tree() -> None:
    """Children can be caught by their parents, as the documentation draws it."""
    assert issubclass(errors.TooManyConnections, errors.AcquireTimeout)
    assert issubclass(errors.CredentialsRejected, errors.ConnectRejected)
    assert issubclass(errors.SettingsError, ValueError)
