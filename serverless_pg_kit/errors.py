"""The errors of the kit.

::

    psycopg.OperationalError
      ServerlessPgError
        AcquireTimeout            no connection in time: waited, attempts, last_error
          TooManyConnections      ... because every slot of the server was taken
        ConnectRejected           the server will not have us: unknown database, no privilege, TLS
          CredentialsRejected     ... because of the user name, password or token
        TransactionFailed         the transaction had failed before its end: rolled back
        CommitUnknown             the connection was lost while COMMIT was under way
        SettingsError             a setting is wrong (also a ValueError)

Everything derives from ``psycopg.OperationalError``, so handlers that exist keep working. The errors pickle,
carry the numbers that mattered as attributes, and chain the driver's error without its ``pgconn``, whose
``repr`` shows the password in clear.
"""

from __future__ import annotations

from psycopg import OperationalError


class ServerlessPgError(OperationalError):
    """Base of all errors that the kit raises by itself."""


class AcquireTimeout(ServerlessPgError):
    """No connection could be had within the time allowed.

    `waited` is in seconds, `attempts` counts the connection attempts (0 if all connections of this process
    were in use), `last_error` is what the server or the network said last. Nothing is left open, and the next
    acquisition starts afresh.
    """

    def __init__(self, message: str = "", *, waited: float = 0.0, attempts: int = 0, last_error: str = "") -> None:
        super().__init__(message)
        self.waited: float = waited
        self.attempts: int = attempts
        self.last_error: str = last_error


class TooManyConnections(AcquireTimeout):
    """Every connection slot that this role may use was taken for the whole time allowed."""


class ConnectRejected(ServerlessPgError):
    """The server refused the connection for a reason that waiting does not cure, or the credentials cannot be had.

    Raised after one attempt. `reason` is what the server said, `code` its SQLSTATE, if that could be had.
    """

    def __init__(self, message: str = "", *, reason: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.reason: str = reason
        self.code: str | None = code


class CredentialsRejected(ConnectRejected):
    """The server refused the user name, the password or the token."""


class TransactionFailed(ServerlessPgError):
    """The request ended as if all were well, but its transaction had failed: it was rolled back.

    Raised because the caller would otherwise believe in a commit that never was. It happens when a database
    error is caught inside the request and nothing rolls the transaction back. `lost` tells that the connection was
    lost before COMMIT was sent: whatever went wrong did not lie in the transaction.
    """

    def __init__(self, message: str = "", *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost: bool = lost


class CommitUnknown(ServerlessPgError):
    """The connection was lost while COMMIT was under way: the transaction may or may not be committed.

    Never retry such a unit of work blindly; look for its result first.
    """


class SettingsError(ServerlessPgError, ValueError):
    """A setting has an unknown name or a value that is not allowed. The message names all three."""
