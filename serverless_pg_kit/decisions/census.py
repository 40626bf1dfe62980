"""What one look at the server says about room, and when to look again."""

from __future__ import annotations

from typing import NamedTuple

FLEET_SHARE = 60
"""Connections of which each may ask once in an interval. A larger fleet asks less often by the same factor, so that the
server answers about as many per second whatever the size of the fleet."""

TIGHT_INTERVAL = 1.0
"""Seconds: the longest interval while room is short. Whoever has a connection is not refused, and learns from nothing
else that others are."""


class Census(NamedTuple):
    """Sessions and limits as one statement saw them; all counts include the connection that asked.

    `limit` is what this role may use of the server, reserves deducted. `role_limit` and `database_limit` are the
    limits set by ALTER ROLE and ALTER DATABASE, or ``None``. `used` counts all clients' sessions of the server,
    `role_used` and `database_used` those that count towards the two limits, `fleet_used` and `fleet_idle` those of
    this role, database and application name, and `fleet_new` those of them that are younger than a second. Sessions
    that are still logging in are not seen: an estimate.
    """

    limit: int
    role_limit: int | None
    database_limit: int | None
    used: int
    role_used: int
    database_used: int
    fleet_used: int
    fleet_idle: int
    fleet_new: int = 0

    @property
    def room(self) -> int:
        """How many more connections this role could open now; negative if others hold the reserves."""
        return min(limit - used for limit, used in self.limits)

    @property
    def ceiling(self) -> int:
        """The smallest limit: how many connections this role could have if nobody else had any."""
        return min(limit for limit, _ in self.limits)

    @property
    def utilization(self) -> float:
        """The share in use of the scarcest limit; 1.0 is full, infinity a limit of 0."""
        return max(used / limit if limit > 0 else float("inf") for limit, used in self.limits)

    @property
    def limits(self) -> list[tuple[int, int]]:
        """The limits that are set, each with what is used of it."""
        pairs = [
            (self.limit, self.used),
            (self.role_limit, self.role_used),
            (self.database_limit, self.database_used),
        ]
        return [(limit, used) for limit, used in pairs if limit is not None]


def read_census(row: list[int], max_connections: int | None) -> Census:
    """Return the census in `row` (the columns of `Statements.census`); `max_connections` replaces the server's."""
    server, superuser_reserve, reserve, role_limit, database_limit, *counts = row
    return Census(
        max_connections if max_connections is not None else server - superuser_reserve - reserve,
        None if role_limit < 0 else role_limit,
        None if database_limit < 0 else database_limit,
        *counts,
    )


def census_interval(census_ttl: float, census: Census, conn_utilization: float, calm: int, dice: float) -> float:
    """Return the seconds until the next census of the process that took `census`.

    It is `TIGHT_INTERVAL` while more than `conn_utilization` is in use, or all. After that it doubles with each of the
    `calm` censuses in a row, up to `census_ttl`: the first may have been taken in a moment's dip. It grows with the
    fleet and is spread by a quarter either way (`dice` in [0, 1)), so that containers which started together do not
    ask together.
    """
    tight = census.utilization > conn_utilization or census.room <= 0
    interval = min(census_ttl, TIGHT_INTERVAL if tight else TIGHT_INTERVAL * 2.0 ** min(calm, 32))
    return interval * max(1.0, census.fleet_used / FLEET_SHARE) * (0.75 + dice / 2)
