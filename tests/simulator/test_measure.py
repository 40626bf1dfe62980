"""The measurements: what counts, and how failures are named."""

from __future__ import annotations

import pytest

from serverless_pg_kit.simulator.measure import Tally, percentile, reason

REFUSED = 'connection failed: connection to server at "127.0.0.1", port 5 failed: FATAL:  '


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 5), (0.95, 10), (1.0, 10)])
def test_percentile(share: float, expected: int) -> None:
    """The percentile is a value that was measured, whatever the order."""
    assert percentile([3, 1, 2, 10, 9, 8, 4, 5, 6, 7], share) == expected


def test_percentile_of_nothing() -> None:
    """Without a served request there is no latency, rather than a latency of zero."""
    assert Tally().percentile(0.5) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (f"OperationalError: {REFUSED}sorry, too many clients already", "sorry, too many clients already"),
        (f'OperationalError: {REFUSED}too many connections for role "app"', "too many connections"),
        ("OperationalError: the connection is closed", "the connection is closed"),
        ("AdminShutdown: terminating connection\nserver closed the connection", "server closed the connection"),
        ("ValueError", "ValueError"),
        ("", "no reason given"),
    ],
)
def test_reason(error: str, expected: str) -> None:
    """A reason is what was said last, without the class of the error and the name of the host or role."""
    assert reason(error) == expected


def test_tally() -> None:
    """Served and failed requests add up, latency is that of the served, the peak outlasts the connections."""
    tally = Tally()
    tally.served(0.5)
    tally.failed_because("a")
    tally.failed_because("a")
    for connections in (1, 7, 3):
        tally.connected(connections)

    assert (tally.requests, tally.failed, tally.reasons) == (3, 2, {"a": 2})
    assert (tally.percentile(1.0), tally.peak, tally.connections) == (0.5, 7, 3)
