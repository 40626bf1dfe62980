"""What one process has seen of its server: on this it decides how long its connections may stay idle."""

from __future__ import annotations

from collections import deque

from serverless_pg_kit.clock import Clock
from serverless_pg_kit.decisions.backoff import first_delay
from serverless_pg_kit.decisions.census import Census, census_interval
from serverless_pg_kit.decisions.lease import (
    KNOWN_INTERVALS,
    PATIENCE,
    REFUSAL_MEMORY,
    Lease,
    Standing,
    choose_lease,
    may_skip_census,
)
from serverless_pg_kit.settings import Settings

PAUSES = 7
"""How many of the latest pauses between requests are remembered."""

USUAL_CONNECT = 0.005
"""Seconds that a connect is taken to last before one was measured."""

NEWEST_SHARE = 0.3
"""Weight of the latest connect in the average."""

NEVER = float("-inf")
FOREVER = float("inf")


class History:
    """The latest census, refusal, connects and pauses of one process with one server. Times are wall-clock seconds.

    `census_at` is when the next census is due, `census_refused_until` when one may be asked for again, `released_at`
    when the latest request ended, `calm` the lease while there is room: the same for every connection.
    """

    __slots__ = (
        "__weakref__",
        "_calm_censuses",
        "_census",
        "_clock",
        "_connect_seconds",
        "_connected_at",
        "_counted_at",
        "_down_until",
        "_has_yielded",
        "_latest_connect",
        "_reap_at",
        "_refused_at",
        "_settings",
        "calm",
        "census_at",
        "census_refused_until",
        "pauses",
        "released_at",
    )

    def __init__(self, clock: Clock, settings: Settings) -> None:
        self._clock = clock
        self._settings = settings
        self._calm_censuses = 0  # in a row
        self.calm: Lease | None = None
        self.census_at: float = NEVER
        self._down_until = NEVER
        self._reap_at = NEVER
        self._census: Census | None = None
        self._counted_at = NEVER
        self._refused_at = NEVER
        self._connect_seconds = USUAL_CONNECT
        self._latest_connect = USUAL_CONNECT
        self._connected_at = NEVER
        self._has_yielded = False  # since then
        self.pauses: deque[float] = deque(maxlen=PAUSES)
        self.released_at: float = NEVER
        self.census_refused_until: float = NEVER

    def note_census(self, census: Census, dice: float) -> None:
        """Remember a `census` and when the next one is due, spread by `dice`."""
        settings = self._settings
        utilization = settings.conn_utilization
        self._census, self._counted_at = census, self._clock.wall()
        was_refused = self._counted_at - self._refused_at <= REFUSAL_MEMORY
        is_calm = census.utilization <= utilization and census.room > 0 and not was_refused
        self.census_at = self._counted_at + census_interval(
            settings.census_ttl, census, utilization, self._calm_censuses, dice
        )
        self._calm_censuses = self._calm_censuses + 1 if is_calm else 0
        self.calm = self._choose(self._counted_at, 0.0) if is_calm else None

    def note_refusal(self) -> None:
        """Remember that a server without free slots refused this process just now."""
        self._refused_at = self._clock.wall()
        self.calm = None
        self._calm_censuses = 0

    def note_reap(self, interval: float) -> None:
        """Remember that this process asked for the election of a cleaner; it may again after `interval` seconds."""
        self._reap_at = self._clock.wall() + interval

    @property
    def may_reap(self) -> bool:
        """Whether this process may ask for the election of a cleaner."""
        return self._clock.wall() >= self._reap_at

    def note_down(self, seconds: float) -> None:
        """Remember for `seconds` that the server was down for a whole acquisition."""
        self._down_until = self._clock.wall() + seconds

    @property
    def is_down(self) -> bool:
        """Whether the server was down a moment ago, so that it is not waited for again."""
        return self._clock.wall() < self._down_until

    def note_connect(self, seconds: float) -> None:
        """Remember how many `seconds` a connect took that has just succeeded."""
        self._connect_seconds += NEWEST_SHARE * (seconds - self._connect_seconds)
        self._latest_connect, self._connected_at, self._has_yielded = seconds, self._clock.wall(), False

    def note_yield(self) -> None:
        """Remember that a connection was given up for others, or ended by its lease."""
        self._has_yielded = True

    def first_delay(self, remaining: float) -> float:
        """Return the seconds to wait before a first attempt to connect, which has `remaining` seconds."""
        if not self._has_yielded:
            return 0.0
        ago = self._clock.wall() - self._connected_at
        return first_delay(self._latest_connect, ago, remaining=remaining, dice=self._clock.dice())

    def put_census_off(self, waited: float) -> bool:
        """Put off the census that a new connection, which was `waited` for, would take, if enough is known without it;
        tell whether."""
        wall, ttl = self._clock.wall(), self._settings.census_ttl
        is_known = may_skip_census(
            self._census,
            wall - self._counted_at,
            wall - self._refused_at,
            waited,
            ttl=ttl,
            conn_utilization=self._settings.conn_utilization,
        )
        if is_known:
            self.census_at = max(self.census_at, self._counted_at + ttl * KNOWN_INTERVALS)
        return is_known

    def note_request(self, wall: float) -> None:
        """Remember the pause before a request that begins now, at `wall`."""
        self.pauses.append(wall - self.released_at)

    def lease(self, born: float, waited: float) -> Lease:
        """Return the lease of a connection that goes to sleep now: opened at `born`, after `waited` seconds."""
        return self.calm if self.calm is not None and waited <= PATIENCE else self._choose(born, waited)

    def _choose(self, born: float, waited: float) -> Lease:
        wall = self._clock.wall()
        standing = Standing(
            self._census if self._counted_at >= self._refused_at else None,  # a refusal outdates a census
            wall - self._refused_at,
            self._connect_seconds,
            [pause for pause in tuple(self.pauses) if pause < FOREVER],  # a copy: other threads add to it
            wall - born,
            waited,
        )
        return choose_lease(standing, longest=self._settings.lease, conn_utilization=self._settings.conn_utilization)
