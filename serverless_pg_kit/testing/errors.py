"""The one error of the test server."""

from __future__ import annotations


class ServerError(RuntimeError):
    """The test server could not be found, started, stopped or used.

    The message says what was tried, what can be done about it and, if the server got that far, ends with the last
    lines of its log.
    """
