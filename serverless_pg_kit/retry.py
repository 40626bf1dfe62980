"""One acquisition's own record of its attempts. It lives as long as the call: a failure never poisons the next one."""

from __future__ import annotations

from psycopg import OperationalError

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.connect import TIMEOUT_MESSAGE
from serverless_pg_kit.conninfo import ConnParams
from serverless_pg_kit.decisions.backoff import Backoff, next_delay
from serverless_pg_kit.decisions.classify import Failure, FailureKind
from serverless_pg_kit.decisions.deadline import Deadline
from serverless_pg_kit.errors import (
    AcquireTimeout,
    ConnectRejected,
    CredentialsRejected,
    ServerlessPgError,
    TooManyConnections,
)
from serverless_pg_kit.history import NEVER
from serverless_pg_kit.target import Target, Tenant

ANSWER_SECONDS = 5.0
"""For how long attempts of one acquisition use the same answer of the credentials, by the time of day: against a full
server there are many. A token that lives for minutes may be that much older than its callable thinks."""


class Retry:
    """Counts the attempts of one acquisition and says when the next is due, or which error ends it.

    It began at `started` and may take `max_wait` seconds: `deadline` bounds the whole acquisition, `request_deadline`
    the request it is for. `target` is whom it is for, and `tenant` what the request itself names. `params` is what to
    connect with; the credentials in it were asked for at `asked_at`, say that we are `identity`, and `is_renewed` tells
    whether they were asked again because the first were rejected.
    """

    def __init__(
        self,
        backoff: Backoff,
        request_deadline: Deadline,
        max_wait: float,
        clock: Clock,
        started: float,
        target: Target,
        tenant: Tenant | None,
    ) -> None:
        self.backoff = backoff
        self.target: Target = target
        self.tenant: Tenant | None = tenant
        self.params: ConnParams | None = None
        self.identity: bytes | None = None
        self.asked_at: float = NEVER
        self.is_renewed: bool = False
        self.deadline: Deadline = Deadline(min(request_deadline.at, started + max_wait), clock.monotonic)
        self.request_deadline = request_deadline
        self.clock = clock
        self.started: float = started
        self.attempts: int = 0
        self.slowest: float = 0.0
        self.latest: float = 0.0
        self._lap = started
        self._heard: Failure | None = None

    @property
    def waited(self) -> float:
        """Seconds since the acquisition began."""
        return self.clock.monotonic() - self.started

    @property
    def is_stale(self) -> bool:
        """Whether the credentials have to be asked, or asked again: what they said may hold no longer."""
        return self.params is None or not 0 <= self.clock.wall() - self.asked_at < ANSWER_SECONDS

    def note(self, seconds: float) -> None:
        """Record an attempt that took `seconds`."""
        self.attempts += 1
        self.latest = seconds
        self.slowest = max(self.slowest, seconds)

    def lap(self) -> float:
        """Return the seconds since the lap before, or since the beginning."""
        before, self._lap = self._lap, self.clock.monotonic()
        return self._lap - before

    def last_word(self, failure: Failure) -> Failure:
        """Return what was really said last: `failure`, unless time merely ran out in it after the server had answered
        earlier attempts. Remembers it."""
        if self._heard is None or TIMEOUT_MESSAGE not in failure.message:
            self._heard = failure
        return self._heard

    def delay(self, failure: Failure) -> float | None:
        """Return the seconds to wait before the next attempt, or ``None`` to give up."""
        return next_delay(
            self.backoff,
            failure,
            attempts=self.attempts,
            remaining=self.deadline.remaining(),
            attempt_seconds=self.slowest,
            dice=self.clock.dice(),
        )

    def error(self, failure: Failure) -> ServerlessPgError:
        """Return the error that ends the acquisition; its cause is the driver's error, without connection or secret."""
        error = connect_error(failure, self.waited, self.attempts)
        error.__cause__ = OperationalError(failure.message)
        return error


ADVICE = {
    FailureKind.CAPACITY: "raise max_wait, lower conn_utilization so that more stays free, or use a pooler",
    FailureKind.POOLER_FULL: "raise the pooler's limits (of clients, of connections to the server), or max_wait",
    FailureKind.STARTING_UP: "the server was not ready; raise max_wait if it needs longer",
    FailureKind.NETWORK: "check host, port and network access, or raise max_wait",
    FailureKind.CREDENTIALS: "check user and password, or what `credentials` returns",
    FailureKind.PERMANENT: "waiting does not cure this; check the connection string and the role's rights",
    FailureKind.UNKNOWN: "if this can be waited for, or cannot, say so with a Rule in connect_rules",
}


def connect_error(failure: Failure, waited: float, attempts: int) -> ServerlessPgError:
    """Return the error for a `failure` after `attempts` that took `waited` seconds in all."""
    message = failure.message.rstrip(".")
    said = f"{message} ({failure.code})" if failure.code else message
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    text = f"after {waited:.2f} s and {tries}: {said}. To do: {failure.advice or ADVICE[failure.kind]}"
    if failure.kind is FailureKind.CREDENTIALS:
        return CredentialsRejected(f"login refused {text}", reason=failure.message, code=failure.code)
    if not failure.kind.retryable:
        return ConnectRejected(f"connection refused for good {text}", reason=failure.message, code=failure.code)
    if failure.kind in (FailureKind.CAPACITY, FailureKind.POOLER_FULL):
        what = "all connection slots are taken" if failure.kind is FailureKind.CAPACITY else "no place at the pooler"
        return TooManyConnections(
            f"{what} {text}",
            waited=waited,
            attempts=attempts,
            last_error=failure.message,
        )
    return AcquireTimeout(f"no connection {text}", waited=waited, attempts=attempts, last_error=failure.message)
